"""DeepSpeed ZeRO 1 to 3 on gloo or NCCL, behind the engine's interface."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any, Final, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from smooth.config import TrainConfig
from smooth.train.engine import WEIGHTS, Added, Engine, Scaler
from smooth.train.optimizer import Averaging, make_optimizer

SCALER: Final = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # of its DynamicLossScaler


REDUCE_BUCKET: Final = 50_000_000
"""Gradients exchanged at once. The buffer is taken whole: DeepSpeed's own 500 million are 1 to 2 GB for any LoRA."""


def deepspeed_settings(config: TrainConfig) -> dict[str, Any]:
    """The DeepSpeed config of a run."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "reduce_bucket_size": REDUCE_BUCKET}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    settings: dict[str, Any] = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        # torch's own AdamW: the one named in DeepSpeed's config compiles an extension first.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": config.steps + 1,
    }
    if config.precision != "fp32":
        settings[config.precision] = {"enabled": True}
    return settings


class ZeroEngine(Engine):
    """A UNet under DeepSpeed: optimizer, gradients and weights sharded as ``config.zero_stage`` says."""

    def __init__(self, unet: UNet2DConditionModel, config: TrainConfig, seed: int, device: torch.device) -> None:
        super().__init__(unet, config, seed, device)
        self.settings = deepspeed_settings(config)
        deepspeed = _import_deepspeed(device)
        parameters = list(self.parameters.values())
        self._engine, *_ = deepspeed.initialize(
            model=unet, model_parameters=parameters, optimizer=make_optimizer(parameters, config), config=self.settings
        )
        self._deepspeed = deepspeed
        # Stages 1 and 2 keep whole weights.
        self.gathers_weights = config.zero_stage == 3
        if self.gathers_weights:
            # A backward pass through the engine's own output would be taken for the step's.
            self.probe = partial(self._run, self._engine.module)
        self.optimizer.start(self.masters())
        if not self.gathers_weights:
            # DeepSpeed does it after the first update, but a checkpoint comes before.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor, added: Added | None = None) -> Tensor:
        """The UNet's output in float32: x_t BxCxHxW, timesteps (B,), text BxLxD => BxCxHxW."""
        # ZeRO-3 counts micro-steps by forward calls of the engine. Stages 1 and 2 do without, and its backward hooks
        # would take the pass that gives the gradient to the noise for the step's own.
        return self._run(self._engine if self.gathers_weights else self._engine.module, noisy, timesteps, text, added)

    def _run(
        self, module: nn.Module, noisy: Tensor, timesteps: Tensor, text: Tensor, added: Added | None = None
    ) -> Tensor:
        output = module(noisy.to(self.dtype), timesteps, **self._told(text, added))
        return cast(Tensor, output.sample.float())

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-step's scalar mean loss."""
        self._engine.backward(loss)

    def step(self) -> bool:
        """End a micro-step; see :meth:`Engine.step`."""
        last = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        return not last or bool(self._engine.was_step_applied())

    @property
    def gradient_norm(self) -> float:
        """See :attr:`Engine.gradient_norm`."""
        norm = self._engine.get_global_grad_norm()
        return math.nan if norm is None or not self._engine.was_step_applied() else float(norm)

    @property
    def optimizer(self) -> Averaging:
        """The optimizer of this rank's shards."""
        return cast(Averaging, self._engine.optimizer.optimizer)

    def masters(self) -> list[Tensor]:
        """The flat float32 shards."""
        optimizer = self._engine.optimizer
        shards = optimizer.fp32_partitioned_groups_flat if self.gathers_weights else None
        return cast(list[Tensor], shards or optimizer.single_partition_of_fp32_groups)

    def whole(self, parameter: nn.Parameter, state: str) -> Tensor:
        """A float32 weight or its state, gathered from the ranks."""
        tools = self._deepspeed.utils
        if state == WEIGHTS:
            return cast(Tensor, tools.safe_get_full_fp32_param(parameter))
        return cast(Tensor, tools.safe_get_full_optimizer_state(parameter, state))

    def put(self, parameter: nn.Parameter, state: str, value: Tensor) -> None:
        """Take this rank's share of a whole weight or state in."""
        tools = self._deepspeed.utils
        if self.gathers_weights:
            share = _share(parameter, value)
            if state == WEIGHTS:
                tools.safe_set_local_fp32_param(parameter, share)
            else:
                tools.safe_set_local_optimizer_state(parameter, share, state)
        elif state == WEIGHTS:
            tools.safe_set_full_fp32_param(parameter, value)
        else:
            tools.safe_set_full_optimizer_state(parameter, value, state)
        if state == WEIGHTS:  # the copy that the network computes with
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.gathers_weights):
                parameter.data.copy_(value)

    @property
    def scaler(self) -> Scaler:
        """State of DeepSpeed's loss scaling."""
        if self.config.precision != "fp16":
            return {}
        return {name: getattr(self._engine.optimizer.loss_scaler, name) for name in SCALER}

    @scaler.setter
    def scaler(self, state: Scaler) -> None:
        for name, value in state.items():
            setattr(self._engine.optimizer.loss_scaler, name, value)


def _share(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's equal share of a whole value, filled up with zeros as ZeRO-3's shards are."""
    size = cast(Any, parameter).ds_tensor.numel()
    padded = functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    return padded[size * dist.get_rank() :][:size]


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told of the accelerator before its import and kept from compiling its CPU collectives (minutes)."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops
    import deepspeed.utils

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
