"""What a training has done, by its own log of samples: each step that counts, and the steps that were lost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TypedDict


class Line(TypedDict):
    """What a rank notes of a step."""

    step: int
    time: float
    workers: int
    samples: list[int]
    rows: list[int]


@dataclass(frozen=True)
class Restart:
    """A place in the log where steps are done again."""

    reached: int
    resumed: int  # the checkpoint it went on from; 0 is none

    @property
    def lost(self) -> int:
        return self.reached - self.resumed


def lines(stage: Path) -> list[list[Line]]:
    """Each rank's lines in the order they were written; those that a kill cut off are left out."""
    count = len(list(stage.glob("samples/rank-*.jsonl")))
    return [_whole(stage / "samples" / f"rank-{rank}.jsonl") for rank in range(count)]


def _whole(path: Path) -> list[Line]:
    found = []
    for text in path.read_text().splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def effective(stage: Path) -> dict[int, list[tuple[int, int]]]:
    """(sample index, row) of all samples of each step, as they were when it was done for the last time."""
    last = [{line["step"]: line for line in rank} for rank in lines(stage)]
    steps = dict[int, list[tuple[int, int]]]()
    for step, first in last[0].items():
        shares = [last[rank][step] for rank in range(first["workers"])]
        assert {share["workers"] for share in shares} == {first["workers"]}
        steps[step] = [pair for share in shares for pair in zip(share["samples"], share["rows"], strict=True)]
    return steps


def check(stage: Path, steps: int, global_batch: int, *sizes: int) -> None:
    """Assert that the steps that count used every sample once, and in every epoch of it each row once.

    ``sizes`` is how many rows there are of each size of latents; their numbers follow each other.
    """
    done = effective(stage)
    assert sorted(done) == list(range(1, steps + 1))
    pairs = [pair for step in sorted(done) for pair in done[step]]
    assert [index for index, _ in pairs] == list(range(steps * global_batch))
    for first, rows in zip(accumulate(sizes, initial=0), sizes, strict=False):
        used = [row for _, row in pairs if first <= row < first + rows]
        for start in range(0, len(used), rows):
            epoch = Counter(used[start : start + rows])
            assert set(epoch.values()) == {1}
            assert len(epoch) == rows or start + rows > len(used)
    assert all(0 <= row < sum(sizes) for _, row in pairs)


def restarts(stage: Path) -> list[Restart]:
    """Where a step is done again, by the log of rank 0: other ranks' end within the same step."""
    first = lines(stage)[0]
    return [
        Restart(before["step"], after["step"] - 1)
        for before, after in pairwise(first)
        if after["step"] <= before["step"]
    ]
