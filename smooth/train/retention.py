"""Which checkpoints are kept: the best and the last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A checkpoint that is whole."""

    name: str
    step: int
    loss: float  # mean since the one before


def superfluous(checkpoints: Iterable[Kept], *, best: int, last: int) -> list[str]:
    """Names of those that are neither among the ``best`` by loss nor, with one that is being written, the ``last``.

    The latest is never among them: until the one being written is whole, training would go on from there.
    """
    by_step = sorted(checkpoints, key=lambda one: one.step)
    by_loss = sorted(by_step, key=lambda one: one.loss)
    kept = {one.name for one in (*by_loss[:best], *by_step[-max(1, last - 1) :])}
    return [one.name for one in by_step if one.name not in kept]
