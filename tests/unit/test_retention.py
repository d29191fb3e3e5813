"""Which checkpoints are emptied, against the rule told one checkpoint at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smooth.train.retention import Kept, superfluous


def checkpoints(losses: list[float]) -> list[Kept]:
    return [Kept(f"step-{step}", step, loss) for step, loss in enumerate(losses)]


def test_the_best_and_the_last_are_kept() -> None:
    losses = [5.0, 1.0, 4.0, 2.0, 3.0, 6.0]
    # With the one that is being written, the last three are that one, step-5 and step-4.
    assert superfluous(checkpoints(losses), best=2, last=3) == ["step-0", "step-2"]
    assert superfluous(checkpoints(losses), best=0, last=1) == [f"step-{step}" for step in range(5)]
    assert superfluous([], best=1, last=1) == []


@given(st.lists(st.floats(0, 1), max_size=8), st.integers(0, 3), st.integers(1, 4))
def test_what_goes_has_enough_better_and_enough_later_ones(losses: list[float], best: int, last: int) -> None:
    gone = superfluous(checkpoints(losses), best=best, last=last)
    for step, loss in enumerate(losses):
        better = sum((other, at) < (loss, step) for at, other in enumerate(losses))
        later = len(losses) - 1 - step  # and the one being written
        assert (f"step-{step}" in gone) == (better >= best and later >= 1 and later + 1 >= last)
