"""The noise schedule: noisy latents, training targets and the predicted clean latent.

Notation of the paper (arXiv 2312.04410): ``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps``. All
tensors are float BxCxHxW latents unless said otherwise; ``timesteps`` is int64 (B,).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


class NoiseSchedule:
    """``alphas_cumprod`` of a diffusers scheduler together with what its network predicts."""

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str) -> None:
        """Take the float (T,) tensor and the ``prediction_type`` of a diffusers scheduler's config.

        Raises:
            ValueError: a prediction type with no rule here, or a step of pure noise under epsilon.
        """
        if prediction_type not in get_args(PredictionType):
            known = " or ".join(get_args(PredictionType))
            raise ValueError(
                f"scheduler prediction_type={prediction_type!r} of model.base is not supported; use {known}"
            )
        if prediction_type == "epsilon" and float(alphas_cumprod.min()) <= 0:
            raise ValueError(
                "the scheduler of model.base ends in pure noise (zero terminal SNR), where an epsilon prediction says "
                "nothing about the clean latent; use a base with prediction_type v_prediction"
            )
        self.alphas_cumprod = alphas_cumprod.detach().to(torch.float32)
        self.prediction_type = prediction_type

    @property
    def steps(self) -> int:
        """Number of training timesteps T."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule with its tensor on ``device``."""
        return NoiseSchedule(self.alphas_cumprod.to(device), self.prediction_type)

    def signal(self, timesteps: Tensor) -> Tensor:
        """``sqrt(abar_t)``, float32 (B, 1, 1, 1)."""
        return self.alphas_cumprod[timesteps].sqrt()[:, None, None, None]

    def sigma(self, timesteps: Tensor) -> Tensor:
        """``sqrt(1 - abar_t)``, float32 (B, 1, 1, 1)."""
        return (1 - self.alphas_cumprod[timesteps]).sqrt()[:, None, None, None]

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy latent ``x_t``."""
        return self.signal(timesteps) * clean + self.sigma(timesteps) * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should output: the noise, or ``v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0``."""
        if self.prediction_type == "epsilon":
            return noise
        return self.signal(timesteps) * noise - self.sigma(timesteps) * clean

    def predicted_clean(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The predicted clean latent ``x0_hat`` from the network's output at ``noisy`` = x_t."""
        signal, sigma = self.signal(timesteps), self.sigma(timesteps)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * output) / signal
        return signal * noisy - sigma * output
