"""Step-wise variation regularization (arXiv 2312.04410, eq. 9 and 10).

``L_reg = E (n - a)^2`` with the per-sample norm ``n = || grad_eps( sqrt(1 - abar_t) x0_hat . delta ) ||``:
equal steps in noise shall give equal steps in the predicted clean latent. ``a`` is a moving average
of the norm: one value for the whole job, averaged over all ranks, kept in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypedDict, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from smooth.config import VariationConfig
from smooth.diffusion.schedule import NoiseSchedule


class Denoiser(Protocol):
    """The network: x_t BxCxHxW, timesteps (B,), text BxLxD => BxCxHxW output."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predict the noise or v of ``noisy``."""
        ...


# eps => (network output, sqrt(1 - abar_t) x0_hat), both BxCxHxW and functions of eps
Denoise = Callable[[Tensor], tuple[Tensor, Tensor]]
# (denoise, eps, delta) => (network output at eps, norms (B,) differentiable by the weights)
Estimator = Callable[[Denoise, Tensor, Tensor], tuple[Tensor, Tensor]]


def denoise_from(network: Denoiser, schedule: NoiseSchedule, clean: Tensor, timesteps: Tensor, text: Tensor) -> Denoise:
    """Everything but the noise held fixed: the map that the regularizer differentiates."""

    def denoise(noise: Tensor) -> tuple[Tensor, Tensor]:
        noisy = schedule.add_noise(clean, noise, timesteps)
        output = network(noisy, timesteps, text)
        return output, schedule.sigma(timesteps) * schedule.predicted_clean(output, noisy, timesteps)

    return denoise


def double_backward(denoise: Denoise, noise: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The norms of eq. 10, with a graph through the gradient: exact, at the memory of a second backward.

    ``noise`` and ``direction`` are BxCxHxW; the forward pass also serves the base loss. Fused
    attention kernels have no second derivative, so the plain one is selected here.
    """
    noise = noise.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        output, scaled_clean = denoise(noise)
        (gradient,) = torch.autograd.grad((scaled_clean * direction).sum(), noise, create_graph=True)
    return output, gradient.float().flatten(1).norm(dim=1)


ESTIMATORS: dict[str, Estimator] = {"double_backward": double_backward}


class VariationState(TypedDict):
    """What a checkpoint keeps of the regularizer."""

    target: float | None
    count: int


class StepwiseVariation:
    """The penalty on the norms and its target ``a``.

    One optimizer step sees one ``a``, whatever the number of ranks and micro-steps: :meth:`update`
    is called once, after the step's last backward, with the mean norm of the whole step.
    """

    def __init__(self, config: VariationConfig) -> None:
        self.weight = config.weight
        self.decay = config.target_decay
        self.estimator = ESTIMATORS[config.estimator]
        self.target: float | None = None
        self.count = 0  # batches averaged into the target

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
