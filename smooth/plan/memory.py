"""Memory of a training worker, part by part, at its worst moment.

What stays from step to step follows from the number of parameters (ZeRO's arithmetic, arXiv 1910.02054, and what
DeepSpeed keeps on top); what comes and goes is counted by :mod:`smooth.plan.trace`. Three moments may be the worst:

    backward     resident + activations + the gradients that are there by then
    update       resident + gradients + the optimizer's temporaries
    validation   resident + a sampling step of the UNet, or one picture in the decoder

Not counted: workspaces of convolutions, buffers of collectives, fragmentation, the CUDA context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from smooth.config import Size, TrainConfig
from smooth.plan.architecture import Architecture
from smooth.plan.trace import Trace, trace
from smooth.train.engine import DTYPES
from smooth.train.zero import REDUCE_BUCKET

Moment = Literal["backward", "update", "validation"]

FP32 = 4  # bytes
LIVE_PARAMETERS = 1_000_000_000  # that ZeRO-3 gathers at once, DeepSpeed's default


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at the worst moment of a step."""

    weights: int
    gradients: int
    optimizer: int  # float32 copies of 16-bit or sharded weights, and both moments
    average: int  # EMA
    activations: int  # or the moment's other temporaries
    batch: int
    other_models: int  # the autoencoder, and the text encoders where captions are encoded in the step
    moment: Moment
    host: int  # offloaded, beside all else that a process takes

    @property
    def total(self) -> int:
        """On the device."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """What makes up the total, by name."""
        return {name: value for name, value in vars(self).items() if name not in ("moment", "host")}


@dataclass(frozen=True)
class Footprint:
    """Sizes of a training: parameters and memory."""

    parameters: int
    trained: int
    memory: Memory


def footprint(architecture: Architecture, config: TrainConfig, size: Size, *, cached_text: bool = True) -> Footprint:
    """What one worker holds on its device.

    Raises:
        ValueError: ``train.lora.targets`` names no layer of the UNet, or no difference step is known for the precision.
    """
    counted = trace(architecture, config, size, _gradient_share(config))
    others = architecture.vae_parameters() + (0 if cached_text else architecture.text_parameters())
    memory = account(counted, config, other_models=FP32 * others, batch=_batch(architecture, config, size))
    return Footprint(counted.parameters, counted.trained, memory)


def account(counted: Trace, config: TrainConfig, *, other_models: int, batch: int) -> Memory:
    """The arithmetic: what was counted, and what follows from the number of parameters."""
    shards = config.workers if config.zero_stage else 1
    owned = math.ceil(counted.trained / shards)  # that this worker updates
    states = {
        "optimizer": math.ceil(counted.moments / shards) + bool(config.zero_stage) * FP32 * owned,
        "average": FP32 * owned if config.ema_decay is not None else 0,
    }
    # torch updates all weights in one go, bitsandbytes one after the other.
    temporaries = FP32 * owned if config.optimizer == "adamw" else 0
    update = {"gradients": FP32 * owned, "activations": temporaries}
    host = 0
    if config.offload_optimizer:
        # With the gradients' float32 copy, and a buffer in the weights' dtype on the way back.
        host = sum(states.values()) + (FP32 + _width(config)) * owned
        states, update = dict.fromkeys(states, 0), dict.fromkeys(update, 0)
    moments: dict[Moment, dict[str, int]] = {
        "backward": {"gradients": counted.gradients + _bucket(counted, config), "activations": counted.activations},
        "update": update,
        "validation": {"gradients": 0, "activations": counted.validation},
    }
    worst = max(moments, key=lambda moment: sum(moments[moment].values()))
    return Memory(
        weights=_weights(counted, config),
        **states,
        **moments[worst],
        batch=batch,
        other_models=other_models,
        moment=worst,
        host=host,
    )


def _width(config: TrainConfig) -> int:
    """Bytes of a number in the dtype that the network computes in."""
    return DTYPES[config.precision].itemsize


def _gradient_share(config: TrainConfig) -> float:
    """Share of the gradients that a worker keeps from one micro-step to the next."""
    if config.zero_stage < 2:
        return 1.0
    return 0.0 if config.offload_optimizer else 1 / config.workers


def _weights(counted: Trace, config: TrainConfig) -> int:
    width = _width(config)
    if config.zero_stage == 0:
        return width * (counted.parameters - counted.trained) + FP32 * counted.trained
    if config.zero_stage < 3:
        return width * counted.parameters
    gathered = min(counted.parameters, LIVE_PARAMETERS) if config.workers > 1 else 0
    return width * (math.ceil(counted.parameters / config.workers) + gathered)


def _bucket(counted: Trace, config: TrainConfig) -> int:
    """DeepSpeed's buffer of gradients on their way to their owners; it is taken whole, however few there are."""
    if config.zero_stage == 0:
        return 0
    # A CPU gives pages only to what is written.
    return _width(config) * (REDUCE_BUCKET if config.gpus_per_worker else min(REDUCE_BUCKET, counted.trained))


def _batch(architecture: Architecture, config: TrainConfig, size: Size) -> int:
    """All micro-batches of a step: latents, noise, direction and what the network is told."""
    latent, told = math.prod(architecture.latent_shape(*size)), math.prod(architecture.text_shape)
    each = 3 * latent + told + sum(architecture.added_widths.values())
    return FP32 * each * config.micro_batch_size * config.accumulation
