"""Turns against a loop that goes through them from the first one."""

from __future__ import annotations

from collections import Counter

import pytest

from smooth.data.turns import Turns


@pytest.mark.parametrize(
    ("rows", "batch"), [([50], 16), ([30, 17, 3], 4), ([1, 2, 3], 8), ([0, 40, 7], 5), ([9, 9], 1)]
)
def test_each_size_goes_through_its_own_samples_in_order(rows: list[int], batch: int) -> None:
    turns = Turns(3, rows, batch)
    total, next_of = sum(rows), Counter[int]()
    for index in range(6 * total):
        size, place = turns.place(index)
        if index % batch == 0:
            chosen = size
        assert size == chosen
        assert place == next_of[size]
        next_of[size] += 1
        if (index + 1) % batch == 0:
            ended = [
                epoch for epoch in range(8) if (index + 1) // batch == sum(epoch * count // batch for count in rows)
            ]
            for epoch in ended[-1:]:  # it gave each size its rows, to within a batch
                assert all(next_of[number] == epoch * count // batch * batch for number, count in enumerate(rows))
    assert all(next_of[number] for number, count in enumerate(rows) if count >= batch)
    assert not any(next_of[number] for number, count in enumerate(rows) if not count)
    places = [Turns(3, rows, batch).place(index) for index in (0, total - 1, 5 * total)]
    assert places == [turns.place(index) for index in (0, total - 1, 5 * total)]


def test_turns_are_shuffled_anew_each_epoch_and_by_the_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [Turns(seed, [40, 40], 4).place(80 * epoch + 4 * turn)[0] for turn in range(20)]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
