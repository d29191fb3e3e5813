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
    """The loss is not finite."""


@dataclass
class TrainState:
    """The cursor is ``samples_seen``: data order and every random draw follow from it and the seed."""

    seed: int
    workers: int
    data: str  # digest of the ingested shards
    step: int = 0
    samples_seen: int = 0
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
            TrainError: made with another seed, from other data, or by another number of workers (the optimizer is
                sharded over them).
        """
        if self.seed != now.seed:
            raise TrainError(f"the checkpoint was made with seed={self.seed}, this run has seed={now.seed}")
        if self.data != now.data:
            raise TrainError(
                f"the checkpoint at step {self.step} was made before `smooth ingest retry` changed the data; "
                "set another seed, or delete the stage's folder to start over"
            )
        if self.workers != now.workers:
            raise TrainError(
                f"the checkpoint at step {self.step} is sharded over {self.workers} workers, this run has "
                f"train.workers={now.workers}; set train.workers={self.workers}, or delete the stage's folder to start "
                "over"
            )
