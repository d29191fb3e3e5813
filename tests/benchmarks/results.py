"""What every benchmark leaves: a table on the screen and the same as JSON under ``.smooth/bench/``."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from smooth import settings


@dataclass(frozen=True)
class Result:
    """One figure. ``goal`` is how it should compare, as ">= 3" or "<= 0.5"; None where there is none."""

    name: str
    value: float
    unit: str
    goal: str | None = None

    @property
    def verdict(self) -> str:
        """Whether the goal is met; nothing where there is none."""
        if self.goal is None:
            return ""
        relation, limit = self.goal.split()
        return "ok" if (self.value >= float(limit) if relation == ">=" else self.value <= float(limit)) else "MISSED"


def folder() -> Path:
    """Where benchmarks write."""
    path = settings.home() / "bench"
    path.mkdir(parents=True, exist_ok=True)
    return path


def report(benchmark: str, results: list[Result]) -> Path:
    """Print the results and write them to ``.smooth/bench/<benchmark>.json``; return its path."""
    spec = sys.modules["__main__"].__spec__
    started = [sys.argv[0]] if spec is None else ["-m", spec.name]
    command = shlex.join(["python", *started, *sys.argv[1:]])
    path = folder() / f"{benchmark}.json"
    path.write_text(json.dumps([asdict(result) | {"command": command} for result in results], indent=2) + "\n")
    width = max(len(result.name) for result in results)
    for result in results:
        goal = "" if result.goal is None else f"   goal {result.goal}: {result.verdict}"
        print(f"{result.name:{width}}  {result.value:10.4g} {result.unit}{goal}")
    print(f"written to {path}")
    return path
