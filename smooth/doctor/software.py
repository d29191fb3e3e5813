"""Python, and what is installed against the lock."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

from smooth.doctor.finding import Finding, error, ok, warning

LOCK = Path(__file__).parents[2] / "infra" / "requirements.lock"
OLDEST = (3, 11, 3)
SHOWN = 5
REINSTALL = "make it anew from the lock: rm -r .venv && make setup"


def python() -> Finding:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return error("python", version, f"give {oldest} or newer: make setup PYTHON=/path/to/python")
    return ok("python", f"{version}, {sys.executable}")


def packages(lock: Path = LOCK) -> Finding:
    """Each locked version against the one that is installed; what others do with other versions nobody has tried."""
    if not lock.is_file():
        return warning("packages", "no lock beside this package", "run it from a checkout to compare versions")
    wanted = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE))
    missing, other = [], []
    for name, version in wanted.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(f"{name} {version}")
            continue
        if here.partition("+")[0] != version:  # a build for CPUs has the same version with +cpu
            other.append(f"{name} {here} (locked: {version})")
    if missing:
        return error("packages", f"{len(missing)} of {len(wanted)} are missing: {_first(missing)}", REINSTALL)
    if other:
        return warning("packages", f"{len(other)} of {len(wanted)} have other versions: {_first(other)}", REINSTALL)
    return ok("packages", f"all {len(wanted)} as locked")


def backport() -> Finding:
    """A package that img2dataset asks for: a copy of a module that Python has, too old for Prefect."""
    try:
        version = metadata.version("dataclasses")
    except metadata.PackageNotFoundError:
        return ok("backports", "none")
    mend = ".venv/bin/pip uninstall dataclasses"
    return error("backports", f"dataclasses {version} hides Python's own, and Prefect's server fails on it", mend)


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
