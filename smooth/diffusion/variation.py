"""Step-wise variation regularization (arXiv 2312.04410, eq. 9): ``L_reg = E (n - a)^2``.

``n`` is the per-sample norm of :mod:`smooth.diffusion.estimators`. ``a`` is a moving average of it: one for the whole
job, averaged over all ranks, kept in the checkpoint. In the paper it is one number for all timesteps. The mean of ``n``
grows with the timestep, in the built-in base a thousandfold, so that most of ``(n - a)^2`` asks timesteps to be alike
and little of it noises and directions. With ``target_knots`` above 1 the target is a line ``a(t)`` through that many
points, each a moving average of the timesteps around it, and the penalty is left with what varies at one timestep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict, cast

import torch
from torch import Tensor
from torch import distributed as dist

from smooth.config import VariationConfig
from smooth.diffusion.estimators import choose_estimator


class VariationState(TypedDict):
    """What a checkpoint keeps of the regularizer."""

    targets: list[float] | None
    count: int


class StepwiseVariation:
    """The penalty on the norms, its weight and its target. The README shows it in a loop of one's own.

    The network must hold still between two passes: no dropout. One optimizer step sees one target,
    whatever the number of ranks and micro-steps: :meth:`update` is called once, after its last backward.
    """

    def __init__(self, config: VariationConfig, *, steps: int = 1000, dtype: torch.dtype = torch.float32) -> None:
        """``steps`` is the length of the noise schedule, ``dtype`` what the network computes in (autocast's, too).

        Raises:
            ValueError: no difference step is known for ``dtype`` and the config gives none.
        """
        self.every = config.every
        self.weight = config.weight * config.every  # of a regularized micro-step; the others have none
        self.decay = config.target_decay
        self.knots = config.target_knots
        self.steps = steps
        self.estimator = choose_estimator(config, dtype)
        self.targets: list[float] | None = None  # at the knots
        self.count = 0  # batches averaged into the target

    def is_due(self, micro_step: int) -> bool:
        """Whether the micro-step of this number, counted from 0 over the whole job, is regularized."""
        return self.weight > 0 and micro_step % self.every == 0

    def penalty(self, norms: Tensor, timesteps: Tensor) -> Tensor:
        """``(n - a(t))^2`` of each sample, (B,) float and (B,) int64 => (B,); ``a`` is a constant here.

        Raises:
            ValueError: the target has no value yet; give it one by :meth:`start`.
        """
        return (norms - self.target(timesteps)).square()

    def target(self, timesteps: Tensor) -> Tensor:
        """``a(t)``, float32 (B,) on the device of ``timesteps``."""
        if self.targets is None:
            raise ValueError("the variation target has no value yet: start() it with the first batch's mean norm")
        return self._shares(timesteps) @ torch.tensor(self.targets, device=timesteps.device)

    def errors(self, norms: Tensor, timesteps: Tensor) -> Tensor:
        """What each sample says of each knot, (B, knots): its share of the knot times ``n - a(t)``; detached."""
        return self._shares(timesteps) * (norms.detach() - self.target(timesteps))[:, None]

    def places(self, timesteps: Tensor) -> list[Tensor]:
        """Where to take the norms that the target starts with, (B,) for each knot: a batch's own for a single one."""
        if self.knots == 1:
            return [timesteps]
        last = self.steps - 1
        return [torch.full_like(timesteps, round(last * knot / (self.knots - 1))) for knot in range(self.knots)]

    def start(self, mean_norms: Sequence[float]) -> None:
        """Set the target to a first batch's mean norms at :meth:`places`, over all ranks.

        Raises:
            ValueError: another number of them than there are knots, or one is not finite.
        """
        if len(mean_norms) != self.knots or not all(map(math.isfinite, mean_norms)):
            raise ValueError(
                f"the variation target starts with a finite norm for each of its knots ({self.knots}), not with "
                f"{list(mean_norms)}"
            )
        self.targets, self.count = list(mean_norms), 1

    def update(self, mean_errors: Sequence[float]) -> None:
        """Move the target by the means over a global batch, of all ranks, of what :meth:`errors` gives.

        With one knot it is the paper's ``a <- a + decay (mean norm - a)``; with more of them the stochastic gradient
        step of the same rate for each. Means that are not finite leave the target alone.
        """
        if self.targets is None or not all(map(math.isfinite, mean_errors)):
            return
        rate = self.decay * self.knots  # a knot sees one sample in so many
        self.targets = [value + rate * error for value, error in zip(self.targets, mean_errors, strict=True)]
        self.count += 1

    def state_dict(self) -> VariationState:
        """Target and count, as plain numbers."""
        return {"targets": self.targets, "count": self.count}

    def load_state_dict(self, state: VariationState) -> None:
        """Continue from a checkpoint's state."""
        self.targets, self.count = state["targets"], state["count"]

    def _shares(self, timesteps: Tensor) -> Tensor:
        """Weights of linear interpolation between the knots, float32 (B, knots); rows sum to 1."""
        place = timesteps.float()[:, None] * (self.knots - 1) / (self.steps - 1)
        knots = torch.arange(self.knots, device=timesteps.device)
        return (1 - (place - knots).abs()).clamp_min(0)


def global_mean(values: Tensor) -> list[float]:
    """Column means of (n, k) values over all ranks, each sample with the same weight; in float64, detached."""
    count = values.new_full((1,), len(values), dtype=torch.float64)
    total = torch.cat([values.detach().double().sum(dim=0), count])
    if dist.is_initialized():
        dist.all_reduce(total)
    return cast(list[float], (total[:-1] / total[-1]).tolist())
