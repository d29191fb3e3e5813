"""A micro-step on tensors without numbers: the UNet, the estimator and the backward pass run for real, on fake tensors.

Every operation tells shapes and dtypes and none computes. So what a step holds and how much it computes can be
counted without weights, data or a GPU. Attention is the fused kernel's, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from smooth.config import TrainConfig
from smooth.diffusion.estimators import denoise_from
from smooth.diffusion.objective import denoising_loss
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation
from smooth.models import trained
from smooth.train.engine import DTYPES
from smooth.train.validation import PICTURES

SCHEDULE: Final = NoiseSchedule(torch.linspace(0.99, 0.01, 1000), "epsilon")  # any one: only shapes count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """Four products. Fused kernels compute a fifth again, which is not the model's."""
    return 2 * _attention(query, key, value)


CPU_ATTENTION: Final = {  # the fused kernels of fake CPU tensors; torch counts those of GPUs alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass(frozen=True)
class Shapes:
    """Of what the UNet is given for one sample."""

    latent: tuple[int, ...]  # (C, h, w)
    text: tuple[int, ...]  # (L, D)
    added: Mapping[str, int]  # widths of what it is told besides the text


class MicroStep:
    """A batch and what is done with it. Built under a FakeTensorMode."""

    def __init__(self, unet: UNet2DConditionModel, config: TrainConfig, shapes: Shapes) -> None:
        self.unet = unet
        self.dtype = DTYPES[config.precision]
        self.gathers = config.zero_stage == 3  # then the gradient by the noise has a forward pass of its own
        self.autocast = config.zero_stage == 0 and config.precision != "fp32"
        self.variation = StepwiseVariation(config.variation, dtype=self.dtype)
        self.variation.start([1.0] * config.variation.target_knots)
        self.schedule = SCHEDULE
        count = config.micro_batch_size
        self.latents, self.noise, self.direction = (torch.empty(count, *shapes.latent) for _ in range(3))
        self.text = torch.empty(count, *shapes.text)
        self.timesteps = torch.empty(count, dtype=torch.int64)
        self.added = {name: torch.empty(count, width) for name, width in shapes.added.items()}

    @property
    def batch(self) -> list[Tensor]:
        """All that comes from the loader."""
        return [self.latents, self.noise, self.direction, self.text, self.timesteps, *self.added.values()]

    def run(self) -> None:
        """Both passes of a micro-step, regularized where the run is."""
        denoise = denoise_from(self._network, self.schedule, self.latents, self.timesteps, self.text)
        target = self.schedule.target(self.latents, self.noise, self.timesteps)
        if self.variation.weight > 0:
            estimate = self.variation.estimator(denoise, self.noise, self.direction, denoise if self.gathers else None)
            loss = denoising_loss(estimate.output, target).mean()
            loss = loss + self.variation.weight * self.variation.penalty(estimate.norms, self.timesteps).mean()
        else:
            loss = denoising_loss(denoise(self.noise)[0], target).mean()
        torch.autograd.backward(loss)

    def draw(self) -> None:
        """A sampling step of the validation pictures, with and without their captions."""
        count = 2 * PICTURES
        noise, text = (torch.empty(count, *value.shape[1:]) for value in (self.noise, self.text))
        self._network(noise, torch.empty(count, dtype=torch.int64), text)

    def _network(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        added = {name: value[:1].to(self.dtype).expand(len(noisy), -1) for name, value in self.added.items()}
        with torch.autocast("cpu", self.dtype, enabled=self.autocast):
            output: Tensor = self.unet(
                noisy.to(self.dtype),
                timesteps,
                encoder_hidden_states=text.to(self.dtype),
                added_cond_kwargs=added or None,
            ).sample
        return output.float()


def flops_per_sample(unet: Mapping[str, Any], config: TrainConfig, shapes: Shapes) -> float:
    """Model FLOPs of a sample's share of a training step, of which a multiplication and an addition are two.

    The mean over micro-steps with the regularizer and without. What an implementation computes again (gradient
    checkpointing, the probe of ZeRO-3) is not counted.
    """
    variation = config.variation
    if not variation.weight or variation.every == 1:
        return _flops(unet, config, shapes)
    plain = {"variation": variation.model_copy(update={"weight": 0.0})}
    without = _flops(unet, config.model_copy(update=plain), shapes)
    return without + (_flops(unet, config, shapes) - without) / variation.every


def _flops(unet: Mapping[str, Any], config: TrainConfig, shapes: Shapes) -> int:
    """Of one micro-step of one sample."""
    bare = {"micro_batch_size": 1, "zero_stage": 0, "gradient_checkpointing": False, "precision": "fp32"}
    config = config.model_copy(update=bare)
    with torch.device("meta"):
        network: UNet2DConditionModel = UNet2DConditionModel.from_config(dict(unet))
        trained.choose(network, config, seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        step = MicroStep(network.train(), config, shapes)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            step.run()
    return int(counter.get_total_flops())
