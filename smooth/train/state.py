"""What training must remember besides weights and optimizer, as plain JSON beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from smooth.diffusion.variation import VariationState

FILE_NAME = "state.json"


class TrainError(ValueError):
    """Training can't go on, and every rank says so alike: starting its workers again would give the same."""


class DivergenceError(TrainError):
    """The loss or its gradient is not finite, again and again."""


@dataclass
class TrainState:
    """The cursor is ``samples_seen``: data order and every random draw follow from it and the seed."""

    seed: int
    data: str  # digest of the ingested shards
    step: int = 0
    samples_seen: int = 0
    updates: int = 0  # of the optimizer: steps less those that were skipped
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_row: int = 0
    scaler: dict[str, float] = field(default_factory=dict)  # of the loss scaling
    variation: VariationState | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # of the last step

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint's folder."""
        (folder / FILE_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the state of a checkpoint's folder."""
        return cls(**json.loads((folder / FILE_NAME).read_text()))

    def check_resumable(self, now: TrainState) -> None:
        """Refuse a checkpoint that the run ``now`` can't continue.

        Raises:
            TrainError: made with another seed or from other data.
        """
        if self.seed != now.seed:
            raise TrainError(f"the checkpoint was made with seed={self.seed}, this run has seed={now.seed}")
        if self.data != now.data:
            raise TrainError(
                f"the checkpoint at step {self.step} was made before `smooth ingest retry` changed the data; "
                "set another seed, or delete the stage's folder to start over"
            )
