"""What a rank of a training is told. Light to import: the stage's driver and Ray's controller need no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smooth.config import RunConfig

if TYPE_CHECKING:
    from smooth.evaluate.protocol import Protocol


def ignore(*_: Any) -> None:
    """What nobody wants to know."""


@dataclass(frozen=True)
class TrainJob:
    """What every rank of a training is told. Folders are absolute: ranks run in directories of their own."""

    config: RunConfig
    base: str  # the resolved model.base
    latents: str  # finished latents folder
    folder: str  # the train stage's folder
    protocol: Protocol | None = None  # of the ISTD estimates; None where train.istd_every asks for none


@dataclass(frozen=True)
class Place:
    """Where a rank runs, and whom it tells. Only rank 0's ``log``, ``picture`` and ``estimate`` are called."""

    rank: int
    ranks: int
    device: torch.device
    log: Callable[[Mapping[str, float], int], None]  # (metrics, step)
    picture: Callable[[str, int], None]  # (path of a PNG, step)
    checkpoint: Callable[[Callable[[Path], None], int, float], None]  # (writes it into a folder, step, mean loss)
    estimate: Callable[[Mapping[str, Tensor], int], None] = ignore  # (trained weights of the moment, step)
