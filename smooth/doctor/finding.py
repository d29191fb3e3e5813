"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line: ``mend`` is empty where all is well."""

    check: str
    level: Level
    found: str
    mend: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, mend: str) -> Finding:
    """A run works, with less than it could have; or what is asked for can't be seen from here."""
    return Finding(check, "warning", found, mend)


def error(check: str, found: str, mend: str) -> Finding:
    """A run would fail."""
    return Finding(check, "error", found, mend)
