"""DeepSpeed behind a small interface: forward, backward, step, checkpoint. ZeRO 0 to 3 on gloo or NCCL."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from smooth.config import TrainConfig
from smooth.diffusion.estimators import Denoiser
from smooth.models import lora

TAG = "deepspeed"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def deepspeed_settings(config: TrainConfig) -> dict[str, Any]:
    """The DeepSpeed config of a run."""
    settings: dict[str, Any] = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {"stage": config.zero_stage},
        # torch's own AdamW: the one named in DeepSpeed's config compiles an extension first.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": config.steps + 1,
    }
    if config.precision != "fp32":
        settings[config.precision] = {"enabled": True}
    return settings


class Engine:
    """A UNet with its adapter under DeepSpeed. Built on every rank, after the process group."""

    def __init__(self, unet: UNet2DConditionModel, config: TrainConfig, seed: int, device: torch.device) -> None:
        """Add the adapter of ``config`` to ``unet`` and shard what ``config.zero_stage`` shards."""
        self.unet = unet
        self.device = device
        self.dtype = DTYPES[config.precision]
        self.settings = deepspeed_settings(config)
        parameters = lora.add_lora(unet, config.lora, seed)
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        deepspeed = _import_deepspeed(device)
        self._engine, *_ = deepspeed.initialize(
            model=unet, model_parameters=parameters, optimizer=optimizer, config=self.settings
        )
        self._gathered = deepspeed.zero.GatheredParameters
        # Stages 0 to 2 keep whole weights.
        self.gathers_weights = config.zero_stage == 3

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The UNet's output in float32: x_t BxCxHxW, timesteps (B,), text BxLxD => BxCxHxW."""
        # ZeRO-3 counts micro-steps by forward calls of the engine. Stages 0 to 2 do without, and its backward hooks
        # would take the pass that gives the gradient to the noise for the step's own.
        return self._run(self._engine if self.gathers_weights else self._engine.module, noisy, timesteps, text)

    @property
    def probe(self) -> Denoiser | None:
        """The way to the output for a gradient by the noise alone; None: the output of a step serves that, too.

        ZeRO-3 would take a backward pass through the engine's own output for the step's.
        """
        return partial(self._run, self._engine.module) if self.gathers_weights else None

    def _run(self, module: nn.Module, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output = module(noisy.to(self.dtype), timesteps, encoder_hidden_states=text.to(self.dtype))
        return cast(Tensor, output.sample.float())

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-step's scalar mean loss."""
        self._engine.backward(loss)

    def step(self) -> None:
        """End a micro-step; the last one of a global batch clips and updates the weights."""
        self._engine.step()

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return float(self._engine.optimizer.param_groups[0]["lr"])

    def save(self, folder: Path) -> None:
        """Write this rank's shard of adapter and optimizer. Every rank calls it, each may have a folder of its own."""
        (folder / TAG).mkdir(parents=True, exist_ok=True)
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Continue from a folder that :meth:`save` wrote with the same number of ranks.

        Raises:
            ValueError: the folder holds no such checkpoint.
        """
        path, _ = self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
        if path is None:
            raise ValueError(f"no DeepSpeed checkpoint at {folder}; delete the train stage's folder to start over")

    def lora_weights(self) -> dict[str, Tensor]:
        """The adapter's weights, whole, float32 on the CPU. Every rank calls it."""
        trainable = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        with self._gathered(trainable, enabled=self.gathers_weights):
            return lora.lora_weights(self.unet)


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told of the accelerator before its import and kept from compiling its CPU collectives (minutes)."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
