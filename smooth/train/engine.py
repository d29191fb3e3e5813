"""One small interface over plain DDP and DeepSpeed: forward, backward, update, and the whole state on rank 0.

The state is that of single weights by name, not of shards: so a checkpoint fits any number of ranks and any
ZeRO stage, and holds no pickle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from smooth.config import TrainConfig
from smooth.models import trained
from smooth.train.optimizer import AVERAGE, Averaging, make_optimizer

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS: Final = "weights"

Added = Mapping[str, Tensor]  # what a UNet is told besides the text, by diffusers' names; B rows each

Scaler = dict[str, float]  # state of the loss scaling, plain numbers; empty where there is none


def start_engine(unet: UNet2DConditionModel, config: TrainConfig, seed: int, device: torch.device) -> Engine:
    """The engine that ``config.zero_stage`` asks for: 0 is plain DDP, 1 to 3 are DeepSpeed's. Every rank calls it."""
    if config.zero_stage == 0:
        return PlainEngine(unet, config, seed, device)
    from smooth.train.zero import ZeroEngine

    return ZeroEngine(unet, config, seed, device)


class Conditioned(Protocol):
    """A denoiser that may be told more than the text."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor, added: Added | None = None) -> Tensor:
        """The output for x_t kBxCxHxW: ``added`` of B samples goes for their k copies one after another."""
        ...


class Engine(ABC):
    """A UNet in training. Built on every rank, after the process group."""

    settings: Mapping[str, Any] = {}  # of the library underneath, to be kept beside the checkpoint
    gathers_weights = False  # whether a forward pass is a collective: all ranks call it or none
    probe: Conditioned | None = None
    """The way to the output for a gradient by the noise alone; None: the output of a step serves that, too."""

    def __init__(self, unet: UNet2DConditionModel, config: TrainConfig, seed: int, device: torch.device) -> None:
        """Choose what is trained; the subclass brings the weights to their device and dtype."""
        self.unet = unet
        self.config = config
        self.device = device
        self.dtype = DTYPES[config.precision]
        self.parameters: dict[str, nn.Parameter] = trained.choose(unet, config, seed)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()

    @abstractmethod
    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor, added: Added | None = None) -> Tensor:
        """The UNet's output in float32: x_t BxCxHxW, timesteps (B,), text BxLxD => BxCxHxW."""

    def _told(self, text: Tensor, added: Added | None) -> dict[str, Any]:
        """The conditions as the UNet takes them."""
        copies = {name: value.repeat(len(text) // len(value), 1) for name, value in (added or {}).items()}
        return {"encoder_hidden_states": text.to(self.dtype), "added_cond_kwargs": copies or None}

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-step's scalar mean loss."""

    @abstractmethod
    def step(self) -> bool:
        """End a micro-step; the last one of a global batch clips and updates the weights.

        False says that the update was left out since a gradient is not finite: on all ranks alike, the weights and
        the optimizer are as they were.
        """

    @property
    @abstractmethod
    def gradient_norm(self) -> float:
        """L2 norm of the last update's gradient before clipping; inf or nan where it is not finite."""

    @property
    @abstractmethod
    def optimizer(self) -> Averaging:
        """The optimizer of this rank's share."""

    @abstractmethod
    def masters(self) -> list[Tensor]:
        """The float32 tensors that this rank's optimizer updates."""

    @abstractmethod
    def whole(self, parameter: nn.Parameter, state: str) -> Tensor:
        """A weight in float32 (``weights``) or its state of that name, whole. Every rank calls it."""

    @abstractmethod
    def put(self, parameter: nn.Parameter, state: str, value: Tensor) -> None:
        """Take a whole weight or state in. Every rank calls it with the same value."""

    @property
    @abstractmethod
    def scaler(self) -> Scaler:
        """State of the loss scaling."""

    @scaler.setter
    @abstractmethod
    def scaler(self, state: Scaler) -> None: ...

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    @property
    def updates(self) -> int:
        """Updates done so far, those of earlier attempts included."""
        return int(self.optimizer.state[self.masters()[0]]["step"])

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """All that an update reads, as ``state/weight`` and a CPU tensor. Every rank walks through it.

        float32, but for moments of 8 bits.
        """
        for name, parameter in self.parameters.items():
            for state in self._shapes(parameter):
                value = self.whole(parameter, state).detach()
                yield f"{state}/{name}", (value if value.dtype == torch.uint8 else value.float()).cpu()

    def _shapes(self, parameter: nn.Parameter) -> dict[str, torch.Size]:
        """Names of what a checkpoint holds of a weight, and their shapes."""
        shape = trained.shape_of(parameter)
        return {WEIGHTS: shape, **self.optimizer.shapes(shape)}

    def load_state(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continue from tensors that :meth:`state` gave on any number of ranks, after so many updates.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        for name, parameter in self.parameters.items():
            for state, shape in self._shapes(parameter).items():
                value = tensors.get(f"{state}/{name}")
                if value is None or value.shape != shape:
                    found = "none" if value is None else f"shape {tuple(value.shape)}"
                    raise ValueError(f"the checkpoint has {found} for {state}/{name}, this run needs {tuple(shape)}")
                self.put(parameter, state, value.to(self.device))
        for master in self.masters():
            self.optimizer.count(master, updates)

    def result(self, *, keep: bool = True) -> dict[str, Tensor]:
        """What training made, by parameter: the average where one is kept, else the weights. Every rank calls it.

        float32 on the CPU, not shared with the network; empty on a rank that does not ``keep`` it.
        """
        state = WEIGHTS if self.config.ema_decay is None else AVERAGE
        kept = {}
        for name, parameter in self.parameters.items():
            weight = self.whole(parameter, state)
            if keep:
                kept[name] = weight.detach().float().cpu().clone()
        return kept


class PlainEngine(Engine):
    """torch's own DDP, autocast and loss scaling: no sharding, whole float32 weights of what is trained."""

    def __init__(self, unet: UNet2DConditionModel, config: TrainConfig, seed: int, device: torch.device) -> None:
        super().__init__(unet, config, seed, device)
        unet.to(device, self.dtype)
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()
        self._module: nn.Module = unet
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._module = DistributedDataParallel(unet, forward_sync_buffers=False, gradient_as_bucket_view=True)
        self._optimizer = make_optimizer(self.parameters.values(), config)
        self._optimizer.start(self.parameters.values())
        self._loss_scale = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._micro_step = 0
        self._gradient_norm = 0.0

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor, added: Added | None = None) -> Tensor:
        """The UNet's output in float32: x_t BxCxHxW, timesteps (B,), text BxLxD => BxCxHxW."""
        mixed = self.config.precision != "fp32"
        with self._syncing(), torch.autocast(self.device.type, self.dtype, enabled=mixed):
            output = self._module(noisy.to(self.dtype), timesteps, **self._told(text, added))
        return cast(Tensor, output.sample.float())

    def _syncing(self) -> AbstractContextManager[None]:
        """Ranks exchange gradients in a global batch's last micro-step alone."""
        last = self._micro_step == self.config.accumulation - 1
        if last or not isinstance(self._module, DistributedDataParallel):
            return nullcontext()
        return self._module.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-step's scalar mean loss."""
        with self._syncing():
            torch.autograd.backward(self._loss_scale.scale(loss / self.config.accumulation))

    def step(self) -> bool:
        """End a micro-step; see :meth:`Engine.step`."""
        self._micro_step = (self._micro_step + 1) % self.config.accumulation
        if self._micro_step:
            return True
        self._loss_scale.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self._gradient_norm = float(norm)
        finite = bool(norm.isfinite())
        if finite:
            self._loss_scale.step(self._optimizer)
        self._loss_scale.update()
        self._optimizer.zero_grad()
        return finite

    @property
    def gradient_norm(self) -> float:
        """See :attr:`Engine.gradient_norm`."""
        return self._gradient_norm

    @property
    def optimizer(self) -> Averaging:
        """The optimizer of all weights."""
        return self._optimizer

    def masters(self) -> list[Tensor]:
        """The trained weights themselves."""
        return list(self.parameters.values())

    def whole(self, parameter: nn.Parameter, state: str) -> Tensor:
        """A weight or its state."""
        return parameter if state == WEIGHTS else cast(Tensor, self._optimizer.state[parameter][state])

    def put(self, parameter: nn.Parameter, state: str, value: Tensor) -> None:
        """Take a weight or its state in."""
        self.whole(parameter, state).data.copy_(value)

    @property
    def scaler(self) -> Scaler:
        """State of torch's GradScaler."""
        return cast(Scaler, self._loss_scale.state_dict())

    @scaler.setter
    def scaler(self, state: Scaler) -> None:
        self._loss_scale.load_state_dict(cast(dict[str, Any], state))
