"""The order of an epoch's rows, worked out window by window: any place of it costs one window, not the whole epoch."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from smooth.data.draws import Stream, generator

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together, in the order of their samples."""

    first: int  # index of the sample that has the first row
    rows: Numbers  # row numbers

    @property
    def end(self) -> int:
        """Index of the first sample behind the window."""
        return self.first + len(self.rows)


@dataclass(frozen=True)
class _Epoch:
    """Where the windows of an epoch begin, and after the last one where they end."""

    groups: list[int]  # places in the permutation of the row groups
    rows: list[int]  # places in the epoch


class Order:
    """Which row each sample is. An epoch is a permutation of the rows, no two alike.

    The shuffle is global over shards, in two levels: all row groups of all shards are permuted, and the rows of as
    many successive ones as fill a window are mixed. So a data set larger than memory is read once an epoch, in
    pieces from all over it, and one that fits into a window is shuffled as a whole.
    """

    def __init__(self, seed: int, starts: Numbers, window_rows: int, first_group: int = 0) -> None:
        """``starts``: first row of each row group from ``first_group`` on, then the row behind the last.

        A window ends with the group that fills ``window_rows``.
        """
        self.seed = seed
        self.starts = starts
        self.rows = int(starts[-1] - starts[0])
        self.window_rows = window_rows
        self.first_group = first_group
        self._epoch = lru_cache(maxsize=2)(self._cut)
        self._window = lru_cache(maxsize=4)(self._shuffle)
        self.groups = lru_cache(maxsize=4)(self._groups)

    def row_number(self, index: int) -> int:
        """Which row of the data set sample ``index`` is, counted over all epochs."""
        window = self.window(index)
        return int(window.rows[index - window.first])

    def window(self, index: int) -> Window:
        """The window that sample ``index`` lies in."""
        epoch, place = divmod(index, self.rows)
        return self._window(epoch, bisect_right(self._epoch(epoch).rows, place) - 1)

    def _groups(self, index: int) -> Numbers:
        """The row groups that samples from ``index`` to the end of its window need, in the order of their use."""
        window = self.window(index)
        rows = window.rows[index - window.first :]
        groups, firsts = np.unique(np.searchsorted(self.starts, rows, side="right") - 1, return_index=True)
        return self.first_group + groups[np.argsort(firsts)]

    def _permute(self, epoch: int) -> tuple[np.random.Generator, Numbers]:
        """The row groups in the order of an epoch, and the generator that they were drawn from."""
        draw = generator(self.seed, epoch, Stream.ORDER)
        return draw, draw.permutation(len(self.starts) - 1)

    def _cut(self, epoch: int) -> _Epoch:
        _, groups = self._permute(epoch)
        ends = np.cumsum(np.diff(self.starts)[groups])
        cuts = _Epoch([0], [0])
        while cuts.groups[-1] < len(groups):
            last = min(int(np.searchsorted(ends, cuts.rows[-1] + self.window_rows)), len(groups) - 1)
            cuts.groups.append(last + 1)
            cuts.rows.append(int(ends[last]))
        return cuts

    def _shuffle(self, epoch: int, number: int) -> Window:
        cuts = self._epoch(epoch)
        draw, groups = self._permute(epoch)
        groups = groups[cuts.groups[number] : cuts.groups[number + 1]]
        if number:  # each window has a stretch of 2**128 draws; the first goes on where the permutation ended
            draw = np.random.Generator(cast(np.random.Philox, draw.bit_generator).jumped(number))
        rows = draw.permutation(
            np.concatenate([np.arange(self.starts[group], self.starts[group + 1]) for group in groups])
        )
        return Window(epoch * self.rows + cuts.rows[number], rows)
