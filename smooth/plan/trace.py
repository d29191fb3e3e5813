"""What is alive at the worst moment of a micro-step, counted in its rehearsal on tensors without numbers.

What counts are the storages that something still holds, so that shared ones count once, and checkpointing and both
graphs of the regularizer come as they come.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smooth.config import Size, TrainConfig
from smooth.models import trained
from smooth.plan.architecture import Architecture, count
from smooth.train.engine import DTYPES
from smooth.train.optimizer import moment_bytes
from smooth.train.rehearsal import MicroStep

NORMS = (nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Trace:
    """What a UNet in training has and what a micro-step holds above it."""

    parameters: int  # of the UNet, adapter included
    trained: int
    moments: int  # bytes of the optimizer's, of all that is trained
    activations: int  # bytes at the worst moment, temporaries included
    gradients: int  # bytes at that moment
    validation: int  # bytes above the resident ones while the validation pictures are drawn


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that operations have made and something still holds, and their peak."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """``known`` tensors are counted elsewhere: views of them cost nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = [tensor.untyped_storage() for tensor in known]  # alive, so that no other takes their ids
        self._alive = {id(storage) for storage in self._known}
        self._gradients = 0
        self.now = self.peak = self.gradients_at_peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what is new in its result."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def hold_gradient(self, size: int) -> None:
        """From here on ``size`` bytes more are held for gradients."""
        self._gradients += size
        self._add(size)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._alive:
            self._alive.add(key)
            weakref.finalize(storage, self._release, key, storage.nbytes())
            self._add(storage.nbytes())

    def _add(self, size: int) -> None:
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self._gradients

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def trace(architecture: Architecture, config: TrainConfig, size: Size, gradient_share: float) -> Trace:
    """Count a micro-step of one worker, which keeps ``gradient_share`` of the gradients from one to the next.

    Raises:
        ValueError: ``train.lora.targets`` names no layer of the UNet, or no difference step is known for its dtype.
    """
    with torch.device("meta"):
        unet = architecture.build_unet()
        _take_dtypes(unet, trained.choose(unet, config, seed=0).values(), config)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    decoding = _decoding(architecture, size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet.to_empty(device="cpu")
        chosen = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        step = MicroStep(unet, config, architecture.shapes(*size))
        live = LiveBytes([*unet.parameters(), *unet.buffers(), *step.batch])
        sizes = {parameter: int(gradient_share * parameter.nbytes) for parameter in chosen}

        def hand_over(parameter: Tensor) -> None:
            """A gradient is whole: the engine keeps its share of it."""
            parameter.grad = None
            if config.accumulation == 1:
                live.hold_gradient(sizes[parameter])

        for parameter in chosen:
            parameter.register_post_accumulate_grad_hook(hand_over)
        if config.accumulation > 1:
            live.hold_gradient(sum(sizes.values()))  # of the micro-steps before
        with live:
            step.run()
        drawing = LiveBytes([*unet.parameters(), *unet.buffers()])
        with drawing, torch.no_grad():
            step.draw()
        return Trace(
            parameters=count(unet),
            trained=sum(parameter.numel() for parameter in chosen),
            moments=sum(moment_bytes(parameter.numel(), config) for parameter in chosen),
            activations=live.peak - live.gradients_at_peak,
            gradients=live.gradients_at_peak,
            validation=max(drawing.peak, decoding),
        )


def _decoding(architecture: Architecture, size: Size) -> int:
    """Bytes that the decoder takes for one picture above its weights."""
    with torch.device("meta"):
        vae = architecture.build_vae()
    with FakeTensorMode(allow_non_fake_inputs=True):
        vae.to_empty(device="cpu")
        live = LiveBytes([*vae.parameters(), *vae.buffers()])
        with live, torch.no_grad():
            vae.decode(torch.empty(1, *architecture.latent_shape(*size)))
    return live.peak


def _take_dtypes(unet: UNet2DConditionModel, chosen: Iterable[nn.Parameter], config: TrainConfig) -> None:
    """As the engines do: ZeRO computes in the weights' dtype, DDP by autocast on float32 weights of what is trained."""
    nn.Module.to(unet.train(), DTYPES[config.precision])
    if config.zero_stage or config.precision == "fp32":
        return
    for parameter in chosen:
        parameter.data = parameter.data.float()
    for module in unet.modules():
        if isinstance(module, NORMS):  # autocast's rule on a GPU; the CPU's, which holds here, leaves them alone
            module.float().register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))
