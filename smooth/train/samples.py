"""Which samples a rank has trained on: a line a step, written as it happens, so that a killed run has left it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from smooth.train.storage import patiently

FOLDER = "samples"  # of the train stage's


class SampleLog:
    """Appends to ``samples/rank-R.jsonl``.

    Of a step that a restart does again the last lines count, those of the ranks below the ``workers`` of rank 0's.
    """

    def __init__(self, stage: str, rank: int, ranks: int, row_number: Callable[[int], int]) -> None:
        """``stage``: local folder of the train stage; ``row_number`` tells the row of a global sample index."""
        self._path = Path(stage, FOLDER, f"rank-{rank}.jsonl")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._ranks = ranks
        self._row_number = row_number

    def add(self, step: int, indices: Sequence[int]) -> None:
        """Note that this rank's share of ``step`` were these global sample indices.

        Raises:
            OSError: the line can't be written.
        """
        line = {
            "step": step,
            "time": time.time(),
            "workers": self._ranks,
            "samples": list(indices),
            "rows": [self._row_number(index) for index in indices],
        }
        patiently(lambda: self._append(json.dumps(line).encode()), str(self._path))

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            # The end of a line ahead of it: one that a kill or a full disk cut off must not take this one along.
            file.write(b"\n" + line)
