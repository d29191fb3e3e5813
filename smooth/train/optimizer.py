"""AdamW with the average of its own weights, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

from smooth.config import TrainConfig
from smooth.train.state import TrainError

MOMENTS: Final = ("exp_avg", "exp_avg_sq")
AVERAGE: Final = "ema"
BLOCK: Final = 256  # numbers that share a float32 scale in 8-bit moments
LEAST_8BIT: Final = 4096  # smaller weights keep float32 moments: bitsandbytes' own bound


class Averaging(torch.optim.Optimizer, ABC):
    """An optimizer that keeps an exponential moving average of the weights as one more of its states.

    So the average is sharded, offloaded and kept in float32 exactly as the moments are, whoever shards them. Its decay
    warms up as diffusers' ``EMAModel`` does: min(decay, (1 + n) / (10 + n)) at update n.
    """

    decay: float | None

    @abstractmethod
    def moments(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Names of the states of a weight of ``shape`` besides the average, and their shapes."""

    def shapes(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Names and shapes of all states of a weight of ``shape`` that a checkpoint holds."""
        return self.moments(shape) | ({} if self.decay is None else {AVERAGE: shape})

    @abstractmethod
    def start(self, weights: Iterable[Tensor]) -> None:
        """Make the states that the first update would make, so that a checkpoint's can be put in their place."""

    @abstractmethod
    def count(self, weight: Tensor, updates: int) -> None:
        """Take so many updates of a started weight for done."""

    def _start_average(self, weight: Tensor) -> None:
        if self.decay is not None:
            self.state[weight][AVERAGE] = weight.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the weights that have gradients, then their averages."""
        result = super().step(closure)
        if self.decay is not None:
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        state = self.state[weight]
                        updates = float(state["step"])
                        decay = min(self.decay, (1 + updates) / (10 + updates))
                        state[AVERAGE].lerp_(weight.detach().to(state[AVERAGE].dtype), 1 - decay)
        return result


class AveragingAdamW(Averaging, torch.optim.AdamW):
    """torch's AdamW."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: TrainConfig) -> None:
        super().__init__(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
        self.decay = config.ema_decay

    def moments(self, shape: torch.Size) -> dict[str, torch.Size]:
        """Both in float32."""
        return dict.fromkeys(MOMENTS, shape)

    def start(self, weights: Iterable[Tensor]) -> None:
        """See :meth:`Averaging.start`."""
        for weight in weights:
            state = self.state[weight]
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in MOMENTS:
                state[name] = torch.zeros_like(weight)
            self._start_average(weight)

    def count(self, weight: Tensor, updates: int) -> None:
        """See :meth:`Averaging.count`."""
        self.state[weight]["step"].fill_(updates)


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Averaging:
    """The optimizer that ``train.optimizer`` asks for.

    Raises:
        TrainError: it is not installed.
    """
    if config.optimizer == "adamw":
        return AveragingAdamW(parameters, config)
    try:
        from smooth.train.eight_bit import AveragingAdamW8bit
    except ImportError as error:
        raise TrainError(
            f"train.optimizer=adamw_8bit needs bitsandbytes ({error}); pip install 'bitsandbytes>=0.50', or set "
            "train.optimizer=adamw"
        ) from error
    return AveragingAdamW8bit(parameters, config)


def moment_bytes(numel: int, config: TrainConfig) -> int:
    """Of a weight of so many numbers."""
    if config.optimizer == "adamw_8bit" and numel >= LEAST_8BIT:
        return len(MOMENTS) * (numel + 4 * math.ceil(numel / BLOCK))
    return len(MOMENTS) * 4 * numel


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of the update at ``step``, counted from 1: a linear warm-up, then constant or half a cosine down to 0."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
