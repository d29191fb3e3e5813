"""Whose turn it is where latents have several sizes: a global batch is stacked, so all of it has one of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from smooth.data.draws import Stream, generator


class Turns:
    """Which size each global batch has, and which of that size's samples are in it.

    An epoch deals to each size the batches that its rows fill; what is left counts in the next epoch. So each row is
    used once in an epoch, to within a batch of each size, and none is ever left out. An epoch's turns are shuffled.
    """

    def __init__(self, seed: int, rows: Sequence[int], batch: int) -> None:
        """``rows``: how many there are of each size; ``batch``: samples of a turn."""
        self.seed = seed
        self.rows = rows
        self.batch = batch
        self._epoch = lru_cache(maxsize=2)(self._deal)

    def place(self, index: int) -> tuple[int, int]:
        """The size of global sample ``index``, by its number, and which sample of that size it is, counted from 0."""
        turn, offset = divmod(index, self.batch)
        latest = (turn + len(self.rows)) * self.batch // sum(self.rows) + 1  # epoch that the turn can be in
        epoch = bisect_right(range(latest + 1), turn, key=lambda epoch: sum(self._before(epoch))) - 1
        sizes, numbers = self._epoch(epoch)
        place = turn - sum(self._before(epoch))
        return int(sizes[place]), int(numbers[place]) * self.batch + offset

    def _before(self, epoch: int) -> list[int]:
        """Turns that each size has had when an epoch begins."""
        return [epoch * rows // self.batch for rows in self.rows]

    def _deal(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The size of each of an epoch's turns, and how many turns that size has had before it."""
        before, after = (np.array(self._before(number)) for number in (epoch, epoch + 1))
        sizes = generator(self.seed, epoch, Stream.TURNS).permutation(np.repeat(np.arange(len(before)), after - before))
        numbers = np.empty_like(sizes)
        for size, first in enumerate(before):
            (places,) = np.nonzero(sizes == size)
            numbers[places] = first + np.arange(len(places))
        return sizes, numbers
