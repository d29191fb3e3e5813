"""bitsandbytes' AdamW with moments of 8 bits, a float32 scale for each block of 256."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit
from torch import Tensor, nn

from smooth.config import TrainConfig
from smooth.train.optimizer import BLOCK, LEAST_8BIT, Averaging


class AveragingAdamW8bit(Averaging, AdamW8bit):  # type: ignore[misc]
    """The average is kept in float32."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: TrainConfig) -> None:
        settings: Any = {
            "lr": config.learning_rate,
            "betas": config.betas,
            "weight_decay": config.weight_decay,
            "min_8bit_size": LEAST_8BIT,
        }
        super().__init__(list(parameters), **settings)
        self.decay = config.ema_decay

    def moments(self, shape: torch.Size) -> dict[str, torch.Size]:
        """As they are stored, so that a checkpoint goes on to the same bits."""
        codes = {"state1": shape, "state2": shape}
        if shape.numel() < LEAST_8BIT:
            return codes
        scales = torch.Size([math.ceil(shape.numel() / BLOCK)])
        return {**codes, "absmax1": scales, "absmax2": scales}

    def start(self, weights: Iterable[Tensor]) -> None:
        """See :meth:`Averaging.start`."""
        wanted = {id(weight) for weight in weights}
        for number, group in enumerate(self.param_groups):
            for place, weight in enumerate(group["params"]):
                if id(weight) in wanted:
                    self.init_state(group, weight, number, place)
                    self._start_average(weight)

    def count(self, weight: Tensor, updates: int) -> None:
        """See :meth:`Averaging.count`."""
        self.state[weight]["step"] = updates
