"""Where a step's time goes, by the host's clock or, on a GPU, by events on its stream."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from typing import Any

import torch


class StepTimes:
    """Marks the ends of phases; phases of the same name add up. A GPU is waited for at the end of a step alone."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []  # seconds, or events

    def mark(self, phase: str) -> None:
        """The time since the last mark belongs to ``phase``; the first one starts a step and belongs to nothing."""
        if not self.cuda:
            self.marks.append((phase, time.perf_counter()))
            return
        event: Any = torch.Event(device="cuda", enable_timing=True)
        event.record()
        self.marks.append((phase, event))

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the first mark, and a fresh start."""
        marks, self.marks = self.marks, []
        if self.cuda:
            torch.cuda.synchronize()
        seconds: Counter[str] = Counter()
        for (_, start), (phase, end) in pairwise(marks):
            seconds[phase] += start.elapsed_time(end) / 1000 if self.cuda else end - start
        return dict(seconds)
