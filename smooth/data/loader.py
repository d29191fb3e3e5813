"""The training data as a pure function: batch = f(seed, samples seen), whatever the number of workers.

Sample ``n`` of a run (its global index, counted from 0 over all epochs) decides by itself which row is
read, and every random draw of it: posterior, noise, timestep, direction and caption dropout. So one
worker or eight, restarted or not, train on the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smooth.data.dataset import LatentsDataset
from smooth.data.draws import Draws, Stream
from smooth.data.order import Order, Window
from smooth.data.turns import Turns


@dataclass(frozen=True)
class Batch:
    """What one rank trains on in one micro-step."""

    latents: Tensor  # BxCxHxW float32, a fresh posterior sample, times the VAE's scaling factor
    noise: Tensor  # BxCxHxW float32, N(0, 1)
    timesteps: Tensor  # (B,) int64
    direction: Tensor  # BxCxHxW float32, N(0, 1) / sqrt(C H W): unit length in expectation
    text: Tensor  # BxLxD float32, the text encoder's output; BxL int64 token ids where the data set holds those
    indices: Tensor  # (B,) int64, global sample indices; always on the CPU
    added: dict[str, Tensor] = field(default_factory=dict)  # what XL is told besides: text_embeds BxP, time_ids Bx6

    def to(self, device: torch.device) -> Batch:
        """The batch with all but the indices on ``device``."""
        tensors = {name: value for name, value in vars(self).items() if name not in ("indices", "added")}
        return replace(
            self,
            **{name: value.to(device) for name, value in tensors.items()},
            added={name: value.to(device) for name, value in self.added.items()},
        )


class _Sample(NamedTuple):
    """One of a batch."""

    latents: Tensor
    noise: Tensor
    direction: Tensor
    text: Tensor
    timestep: int
    added: dict[str, Tensor]


class LatentLoader:
    """Batches of a data set as a function of global sample indices."""

    def __init__(
        self, dataset: LatentsDataset, *, seed: int, timesteps: int, caption_dropout: float, global_batch_size: int
    ) -> None:
        """``timesteps`` is the length of the noise schedule; ``caption_dropout`` a probability.

        Each ``global_batch_size`` samples from a multiple of it on have latents of one size.
        """
        self.dataset = dataset
        groups = dataset.groups_of_sizes
        self.orders = [
            Order(seed, dataset.starts[size.start : size.stop + 1], dataset.window_rows, size.start) for size in groups
        ]
        self.turns = Turns(seed, [order.rows for order in self.orders], global_batch_size)
        self.global_batch_size = global_batch_size
        self.timesteps = timesteps
        self.caption_dropout = caption_dropout
        self._draws = Draws(seed)
        self._windows: dict[int, Window] = {}  # of each size, that of its sample before

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples ``indices`` of the run, all of one size. For one thread at a time."""
        samples = [self._sample(index) for index in indices]
        self._read_ahead(indices[-1])
        return Batch(
            latents=torch.stack([sample.latents for sample in samples]),
            noise=torch.stack([sample.noise for sample in samples]),
            timesteps=torch.tensor([sample.timestep for sample in samples]),
            direction=torch.stack([sample.direction for sample in samples]),
            text=torch.stack([sample.text for sample in samples]),
            indices=torch.tensor(list(indices)),
            added={name: torch.stack([sample.added[name] for sample in samples]) for name in samples[0].added},
        )

    def micro_batches(self, samples_seen: int, micro_batch: int, rank: int, ranks: int) -> list[Batch]:
        """This rank's micro-batches of the global batch that starts at ``samples_seen``: an unbroken run of it."""
        share = self.global_batch_size // ranks
        start = samples_seen + rank * share
        return [self.batch(range(first, first + micro_batch)) for first in range(start, start + share, micro_batch)]

    def _sample(self, index: int) -> _Sample:
        """The sample's row with all its draws."""
        row = self.dataset.row(self._row_to_read(index))
        mean, log_variance = torch.from_numpy(row.moments.astype(np.float32)).chunk(2)
        shape = mean.shape
        deviation = (0.5 * log_variance.clamp(-30, 20)).exp()
        latents = (mean + deviation * self._normal(index, Stream.POSTERIOR, shape)) * self.dataset.scaling_factor
        null_text = self.dataset.null_text
        dropped = self._draws(index, Stream.DROPOUT).random() < self.caption_dropout
        return _Sample(
            latents,
            self._normal(index, Stream.NOISE, shape),
            self._normal(index, Stream.DIRECTION, shape) / math.sqrt(math.prod(shape)),
            null_text if dropped else torch.from_numpy(row.text).to(null_text.dtype),
            int(self._draws(index, Stream.TIMESTEP).integers(self.timesteps)),
            self.dataset.added(row, without_text=dropped),
        )

    def row_number(self, index: int) -> int:
        """Which row of the data set global sample ``index`` is."""
        size, place = self.turns.place(index)
        return self.orders[size].row_number(place)

    def _row_to_read(self, index: int) -> int:
        """The sample's row. Where its window is another than before, what it still needs begins to be read."""
        size, place = self.turns.place(index)
        window = self.orders[size].window(place)
        if window is not self._windows.get(size):
            self._windows[size] = window
            self.dataset.read_ahead(self.orders[size].groups(place))
        return int(window.rows[place - window.first])

    def _read_ahead(self, index: int) -> None:
        """Have the next window read by the middle of the one of ``index``, bit by bit: a core may be all there is."""
        size, place = self.turns.place(index)
        window = self.orders[size].window(place)
        groups = self.orders[size].groups(window.end)
        done = (place + 1 - window.first) / len(window.rows)
        self.dataset.read_ahead(groups[: math.ceil(2 * done * len(groups))])

    def _normal(self, index: int, stream: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(self._draws(index, stream).standard_normal(shape, dtype=np.float32))
