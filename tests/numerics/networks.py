"""Networks, batches and flat gradients for the tests of the regularizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from smooth.config import LoraConfig
from smooth.diffusion.estimators import Denoiser, denoise_from
from smooth.diffusion.objective import denoising_loss
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation
from smooth.models.lora import add_lora


def schedule(prediction_type: str = "epsilon") -> NoiseSchedule:
    """Stable Diffusion's noise schedule."""
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return NoiseSchedule(scheduler.alphas_cumprod, prediction_type)


def unet(widths: tuple[int, ...], layers: int = 2, text_width: int = 64, groups: int = 16) -> UNet2DConditionModel:
    """Stable Diffusion's UNet of other widths, random weights; the last level has no attention, as there."""
    attending = len(widths) - 1
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        cross_attention_dim=text_width,
        attention_head_dim=8,
        norm_num_groups=groups,
    )


def adapted(network: UNet2DConditionModel) -> UNet2DConditionModel:
    """The network with a LoRA that has moved away from the identity, so that all of it has gradients."""
    add_lora(network, LoraConfig(), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return network


def caller(network: nn.Module) -> Denoiser:
    """A UNet (wrapped or not) under the interface of a denoiser."""

    def call(noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = network(noisy, timesteps, encoder_hidden_states=text).sample
        return output.float()

    return call


@dataclass(frozen=True)
class Draws:
    """Everything random of a batch."""

    clean: Tensor
    noise: Tensor
    direction: Tensor
    text: Tensor
    timesteps: Tensor

    @classmethod
    def make(cls, count: int, size: int = 16, text_width: int = 64) -> Draws:
        """``count`` samples over the whole range of timesteps."""
        generator = torch.Generator().manual_seed(2)
        clean, noise, direction = torch.randn(3, count, 4, size, size, generator=generator)
        text = torch.randn(count, 8, text_width, generator=generator)
        timesteps = torch.linspace(999, 10, count).long()
        return cls(clean, noise, direction / (2 * size), text, timesteps)

    def part(self, rank: int, ranks: int) -> Draws:
        """A rank's share: every ``ranks``-th sample."""
        return Draws(**{name: value[rank::ranks] for name, value in vars(self).items()})


def loss_of(
    network: Denoiser,
    draws: Draws,
    noise_schedule: NoiseSchedule,
    variation: StepwiseVariation,
    probe: Denoiser | None = None,
) -> Tensor:
    """The training loss of eq. 14."""
    fixed = (noise_schedule, draws.clean, draws.timesteps, draws.text)
    denoise, way = denoise_from(network, *fixed), None if probe is None else denoise_from(probe, *fixed)
    estimate = variation.estimator(denoise, draws.noise, draws.direction, way)
    target = noise_schedule.target(draws.clean, draws.noise, draws.timesteps)
    base = denoising_loss(estimate.output, target).mean()
    return base + variation.weight * variation.penalty(estimate.norms, draws.timesteps).mean()


def flat(gradients: Iterable[Tensor | None]) -> Tensor:
    """All gradients as one float64 vector."""
    return torch.cat([gradient.detach().double().flatten() for gradient in gradients if gradient is not None])


def relative(value: Tensor, reference: Tensor) -> float:
    """Relative L2 difference."""
    return float((value - reference).norm() / reference.norm())
