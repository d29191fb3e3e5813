"""AdamW with the average of its own weights, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

from smooth.config import TrainConfig

MOMENTS: Final = ("exp_avg", "exp_avg_sq")
AVERAGE: Final = "ema"


class AveragingAdamW(torch.optim.AdamW):
    """torch's AdamW that keeps an exponential moving average of the weights as one more of its states.

    So the average is sharded, offloaded and kept in float32 exactly as the moments are, whoever shards them. Its decay
    warms up as diffusers' ``EMAModel`` does: min(decay, (1 + n) / (10 + n)) at update n.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: TrainConfig) -> None:
        super().__init__(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
        self.decay = config.ema_decay
        self.states = MOMENTS if self.decay is None else (*MOMENTS, AVERAGE)

    def start(self, weights: Iterable[Tensor]) -> None:
        """Make the states that the first update would make, so that a checkpoint's can be put in their place."""
        for weight in weights:
            state = self.state[weight]
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in MOMENTS:
                state[name] = torch.zeros_like(weight)
            if self.decay is not None:
                state[AVERAGE] = weight.detach().clone()

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


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of the update at ``step``, counted from 1: a linear warm-up, then constant or half a cosine down to 0."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
