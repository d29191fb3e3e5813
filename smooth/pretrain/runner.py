"""What both pretraining stages share: device, schedule, progress, a checkpoint to resume from."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch


class Stateful(Protocol):
    """Anything with PyTorch's state dict methods."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take the state back."""


@dataclass(frozen=True)
class Budget:
    """Length and speed of one stage: it ends after ``steps``, or ``minutes`` if they are over first."""

    steps: int
    batch_size: int
    learning_rate: float
    minutes: float | None = None
    warmup: int = 200

    def progress(self, step: int, seconds: float) -> float:
        """Share of the stage that is done, 0 to 1, by steps or by time, whichever is further."""
        by_time = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(step / self.steps, by_time))

    def rate(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up, then half a cosine over the progress down to 1 %."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Checkpoint:
    """The state of a stage in one file, written every ``every_s`` seconds and at the end."""

    def __init__(self, path: Path, parts: dict[str, Stateful], every_s: float = 120.0) -> None:
        self.path = path
        self.parts = parts
        self.every_s = every_s
        self.seconds = 0.0  # of training, over all runs that led here
        self._saved = self._resumed = time.monotonic()

    def resume(self) -> int:
        """Load the file if there is one; return the step to go on from."""
        self._resumed = time.monotonic()
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.seconds = state["seconds"]
        print(f"resuming {self.path.name} at step {state['step']}", flush=True)
        return int(state["step"])

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, earlier runs included."""
        return self.seconds + time.monotonic() - self._resumed

    def save(self, step: int, *, force: bool = False) -> None:
        """Write the state if it is time to, through a temporary name."""
        if not force and time.monotonic() - self._saved < self.every_s:
            return
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save({**state, "step": step, "seconds": self.elapsed}, partial)
        partial.rename(self.path)
        self._saved = time.monotonic()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, nothing on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
