"""The order of rows against a loop over the whole epoch, and what an index of a million rows costs."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from smooth.data.dataset import LatentsDataset
from smooth.data.draws import Draws, Stream, generator
from smooth.data.order import Order
from tests.synthetic import repeat_parts, write_latents

SIZES = [16, 16, 3, 16, 1, 16, 16, 9, 16, 2, 16]
STARTS = np.cumsum([0, *SIZES])
ROWS = int(STARTS[-1])


def whole_epoch(seed: int, epoch: int, window_rows: int) -> list[int]:
    """The whole epoch's order, window after window, each of which has a stretch of the counter."""
    order: list[int] = []
    number = 0
    waiting = generator(seed, epoch, Stream.ORDER).permutation(len(SIZES)).tolist()
    while waiting:
        window: list[int] = []
        while waiting and len(window) < window_rows:
            group = waiting.pop(0)
            window += range(STARTS[group], STARTS[group] + SIZES[group])
        draw = generator(seed, epoch, Stream.ORDER)
        draw.permutation(len(SIZES))
        if number:
            draw.bit_generator.advance(number * 2**128)
        order += draw.permutation(window).tolist()
        number += 1
    return order


@pytest.mark.parametrize("window_rows", [1, 16, 40, 4096])
def test_any_place_is_that_of_the_whole_epoch(window_rows: int) -> None:
    wanted = whole_epoch(5, 0, window_rows) + whole_epoch(5, 1, window_rows)
    assert sorted(wanted[:ROWS]) == sorted(wanted[ROWS:]) == list(range(ROWS))
    order = Order(5, STARTS, window_rows)
    assert [order.row_number(index) for index in range(2 * ROWS)] == wanted
    for index in np.random.default_rng(0).permutation(2 * ROWS)[:50]:
        assert Order(5, STARTS, window_rows).row_number(int(index)) == wanted[index]


def test_windows_follow_each_other_and_name_their_groups_in_the_order_of_use() -> None:
    order = Order(5, STARTS, 40)
    index = 0
    while index < 3 * ROWS:
        window = order.window(index)
        assert window.first == index
        held = [row for group in order.groups(index) for row in range(STARTS[group], STARTS[group + 1])]
        assert sorted(window.rows) == sorted(held)
        visited = [int(np.searchsorted(STARTS, row, side="right")) - 1 for row in window.rows]
        for place in (0, len(visited) // 2, len(visited) - 1):
            assert order.groups(index + place).tolist() == list(dict.fromkeys(visited[place:]))
        assert len(held) < 40 + 16
        assert order.window(window.end - 1) is window
        index = window.end
    assert index == 3 * ROWS


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_draws_are_those_of_a_generator_of_their_own(kind: Any) -> None:
    draws = Draws(2**63 + 1)
    for index, stream in [(0, 1), (7, Stream.NOISE), (2**40, Stream.DROPOUT), (7, Stream.NOISE)]:
        # Odd counts leave words in the generator's buffer.
        drawn: NDArray[Any] = draws(index, stream).standard_normal(7, dtype=kind)
        assert (drawn == generator(2**63 + 1, index, stream).standard_normal(7, dtype=kind)).all()
        assert draws(index, stream).integers(1000) == generator(2**63 + 1, index, stream).integers(1000)


def test_a_million_rows_are_indexed_quickly_and_in_little_memory(tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", rows=1000, files=4, latent_shape=(1, 2, 2), text_shape=(2, 2))
    repeat_parts(folder, 1000)
    tracemalloc.start()
    started = time.monotonic()
    dataset = LatentsDataset(str(folder))
    order = Order(1, dataset.starts, dataset.window_rows)
    last = order.row_number(len(dataset) - 1)
    opened = time.monotonic() - started
    for index in range(0, len(dataset), 1000):
        order.row_number(index)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(dataset), len(dataset.starts)) == (1_000_000, 4001)
    assert 0 <= last < 1_000_000
    assert peak < 50e6
    assert opened < 60  # some tenths of a second; thousands of footers would take longer
    assert (dataset.row(999_999)[0] == dataset.row(999)[0]).all()
