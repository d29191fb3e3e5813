"""Step-wise variation regularization (arXiv 2312.04410, eq. 9): ``L_reg = E (n - a)^2``.

``n`` is the per-sample norm of :mod:`smooth.diffusion.estimators`. ``a`` is a moving average of it: one value
for the whole job, averaged over all ranks, kept in the checkpoint.
"""

from __future__ import annotations

import math
from typing import TypedDict, cast

import torch
from torch import Tensor
from torch import distributed as dist

from smooth.config import VariationConfig
from smooth.diffusion.estimators import choose_estimator


class VariationState(TypedDict):
    """What a checkpoint keeps of the regularizer."""

    target: float | None
    count: int


class StepwiseVariation:
    """The penalty on the norms, its weight and its target ``a``. The README shows it in a loop of one's own.

    The network must hold still between two passes: no dropout. One optimizer step sees one ``a``,
    whatever the number of ranks and micro-steps: :meth:`update` is called once, after its last backward.
    """

    def __init__(self, config: VariationConfig, *, dtype: torch.dtype = torch.float32) -> None:
        """``dtype`` is what the network computes in, be it by its weights or by autocast.

        Raises:
            ValueError: no difference step is known for ``dtype`` and the config gives none.
        """
        self.every = config.every
        self.weight = config.weight * config.every  # of a regularized micro-step; the others have none
        self.decay = config.target_decay
        self.estimator = choose_estimator(config, dtype)
        self.target: float | None = None
        self.count = 0  # batches averaged into the target

    def is_due(self, micro_step: int) -> bool:
        """Whether the micro-step of this number, counted from 0 over the whole job, is regularized."""
        return self.weight > 0 and micro_step % self.every == 0

    def penalty(self, norms: Tensor) -> Tensor:
        """``(n - a)^2`` of each sample, (B,) => (B,); ``a`` is a constant here.

        Raises:
            ValueError: the target has no value yet; give :meth:`update` the first batch's mean before.
        """
        if self.target is None:
            raise ValueError("the variation target has no value yet: update() it with the first batch's mean norm")
        return (norms - self.target).square()

    def update(self, mean_norm: float) -> None:
        """Move the target towards a global batch's mean norm, taken over all ranks by :func:`global_mean`.

        The first call sets the target to it. A mean that is not finite leaves the target alone.
        """
        if not math.isfinite(mean_norm):
            return
        self.target = mean_norm if self.target is None else self.target + self.decay * (mean_norm - self.target)
        self.count += 1

    def state_dict(self) -> VariationState:
        """Target and count, as plain numbers."""
        return {"target": self.target, "count": self.count}

    def load_state_dict(self, state: VariationState) -> None:
        """Continue from a checkpoint's state."""
        self.target, self.count = state["target"], state["count"]


def global_mean(values: Tensor) -> list[float]:
    """Column means of (n, k) values over all ranks, each sample with the same weight; in float64, detached."""
    count = values.new_full((1,), len(values), dtype=torch.float64)
    total = torch.cat([values.detach().double().sum(dim=0), count])
    if dist.is_initialized():
        dist.all_reduce(total)
    return cast(list[float], (total[:-1] / total[-1]).tolist())
