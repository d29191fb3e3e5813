"""The training data as a pure function: batch = f(seed, samples seen), whatever the number of workers.

Sample ``n`` of a run (its global index, counted from 0 over all epochs) decides by itself which row is
read, and every random draw of it: posterior, noise, timestep, direction and caption dropout. So one
worker or eight, restarted or not, train on the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smooth.data import dataset
from smooth.data.dataset import LatentsDataset


@dataclass(frozen=True)
class Batch:
    """What one rank trains on in one micro-step."""

    latents: Tensor  # BxCxHxW float32, a fresh posterior sample, times the VAE's scaling factor
    noise: Tensor  # BxCxHxW float32, N(0, 1)
    timesteps: Tensor  # (B,) int64
    direction: Tensor  # BxCxHxW float32, N(0, 1) / sqrt(C H W): unit length in expectation
    text: Tensor  # BxLxD float32, the text encoder's output; BxL int64 token ids where the data set holds those
    indices: Tensor  # (B,) int64, global sample indices; always on the CPU

    def to(self, device: torch.device) -> Batch:
        """The batch with all but the indices on ``device``."""
        return replace(
            self, **{item.name: getattr(self, item.name).to(device) for item in fields(self) if item.name != "indices"}
        )


class Stream:
    """Independent random streams of one sample. The values are part of what a seed means: never renumber them."""

    POSTERIOR = 1
    NOISE = 2
    TIMESTEP = 3
    DIRECTION = 4
    DROPOUT = 5
    ORDER = 6
    VALIDATION = 7


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """A counter-based generator: the same (seed, index, stream) gives the same draws, on any machine."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


class LatentLoader:
    """Batches of a data set as a function of global sample indices."""

    def __init__(self, dataset: LatentsDataset, *, seed: int, timesteps: int, caption_dropout: float) -> None:
        """``timesteps`` is the length of the noise schedule; ``caption_dropout`` a probability."""
        self.dataset = dataset
        self.seed = seed
        self.timesteps = timesteps
        self.caption_dropout = caption_dropout
        self.order = lru_cache(maxsize=2)(self._order)

    def row_number(self, index: int) -> int:
        """Which row of the data set global sample ``index`` is."""
        epoch, place = divmod(index, len(self.dataset))
        return int(self.order(epoch)[place])

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples ``indices`` of the run."""
        samples = [self._sample(index) for index in indices]
        latents, noise, direction, text = (torch.stack(part) for part in list(zip(*samples, strict=True))[:4])
        return Batch(
            latents=latents,
            noise=noise,
            timesteps=torch.tensor([sample[4] for sample in samples]),
            direction=direction,
            text=text,
            indices=torch.tensor(list(indices)),
        )

    def micro_batches(
        self, samples_seen: int, global_batch: int, micro_batch: int, rank: int, ranks: int
    ) -> list[Batch]:
        """This rank's micro-batches of the global batch that starts at ``samples_seen``: an unbroken run of it."""
        share = global_batch // ranks
        start = samples_seen + rank * share
        return [self.batch(range(first, first + micro_batch)) for first in range(start, start + share, micro_batch)]

    def _sample(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Latents, noise, direction (C, H, W), text (L, D) or (L,) and the timestep of a sample."""
        moments, text = self.dataset.row(self.row_number(index))
        shape = self.dataset.latent_shape
        mean, log_variance = torch.from_numpy(moments.astype(np.float32)).chunk(2)
        deviation = (0.5 * log_variance.clamp(-30, 20)).exp()
        latents = (mean + deviation * self._normal(index, Stream.POSTERIOR)) * self.dataset.scaling_factor
        null_text = self.dataset.null_text
        dropped = generator(self.seed, index, Stream.DROPOUT).random() < self.caption_dropout
        return (
            latents,
            self._normal(index, Stream.NOISE),
            self._normal(index, Stream.DIRECTION) / math.sqrt(math.prod(shape)),
            null_text if dropped else torch.from_numpy(text).to(null_text.dtype),
            int(generator(self.seed, index, Stream.TIMESTEP).integers(self.timesteps)),
        )

    def _normal(self, index: int, stream: int) -> Tensor:
        draw = generator(self.seed, index, stream)
        return torch.from_numpy(draw.standard_normal(self.dataset.latent_shape, dtype=np.float32))

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """All row numbers in the order of an epoch."""
        draw = generator(self.seed, epoch, Stream.ORDER)
        order: list[NDArray[np.int64]] = []
        window: list[NDArray[np.int64]] = []
        for group in draw.permutation(len(self.dataset.groups)):
            window.append(np.arange(self.dataset.starts[group], self.dataset.starts[group + 1]))
            if sum(map(len, window)) >= dataset.WINDOW_ROWS:
                order.append(draw.permutation(np.concatenate(window)))
                window = []
        if window:
            order.append(draw.permutation(np.concatenate(window)))
        return np.concatenate(order)
