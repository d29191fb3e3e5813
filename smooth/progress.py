"""Progress of a stage as lines of its log, so that it survives any process boundary.

A stage runs as a Ray job; whoever follows its log (a flow, a terminal) parses these lines.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field

PREFIX = "SMOOTH_PROGRESS "


@dataclass(frozen=True)
class Progress:
    """How far a stage is: ``done`` of ``total`` ``unit``s, with a few facts worth seeing."""

    stage: str
    done: int
    total: int
    unit: str
    facts: dict[str, float | int | str] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    @property
    def percent(self) -> float:
        """Completed share in percent, 0 to 100."""
        return 100.0 * min(self.done, self.total) / self.total if self.total else 0.0

    def line(self) -> str:
        """The log line that :func:`parse` reads back."""
        return PREFIX + json.dumps(asdict(self), separators=(",", ":"))

    def text(self) -> str:
        """One line for people: ``train: 50/200 steps (25 %), loss 0.123``."""
        facts = "".join(f", {name} {number(value)}" for name, value in self.facts.items())
        return f"{self.stage}: {self.done}/{self.total} {self.unit} ({self.percent:.0f} %){facts}"


def report(stage: str, done: int, total: int, unit: str, **facts: float | int | str) -> None:
    """Print one progress line to standard output, at once; in words where a person looks on."""
    step = Progress(stage, done, total, unit, facts)
    print(step.text() if sys.stdout.isatty() else step.line(), flush=True)


def parse(line: str) -> Progress | None:
    """Return the progress in a log line, or None when the line holds none.

    Ray prefixes lines of its workers with ``(name pid=...)``, so the marker may stand anywhere.
    """
    _, marker, rest = line.partition(PREFIX)
    if not marker:
        return None
    try:
        return Progress(**json.loads(rest))
    except (json.JSONDecodeError, TypeError):
        return None


def number(value: float | int | str) -> str:
    """Four digits of a float, all of anything else."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
