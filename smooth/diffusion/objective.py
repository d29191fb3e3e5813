"""The base denoising loss of diffusion training."""

from __future__ import annotations

from torch import Tensor


def denoising_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample: BxCxHxW network output and target => float32 (B,)."""
    return (output.float() - target.float()).square().flatten(1).mean(1)
