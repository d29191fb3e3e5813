"""What a checkpoint says of the run that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from smooth.train.state import TrainError, TrainState


def test_state_survives_a_folder(tmp_path: Path) -> None:
    state = TrainState(seed=3, workers=2, step=7, samples_seen=56, variation={"target": 0.25, "count": 8})
    state.save(tmp_path)
    assert TrainState.load(tmp_path) == state


@pytest.mark.parametrize(
    ("seed", "workers", "message"),
    [(4, 2, "made with seed=3, this run has seed=4"), (3, 1, r"sharded over 2 workers.*set train\.workers=2")],
)
def test_another_seed_or_number_of_workers_is_refused(seed: int, workers: int, message: str) -> None:
    state = TrainState(seed=3, workers=2)
    state.check_resumable(3, 2)
    with pytest.raises(TrainError, match=message):
        state.check_resumable(seed, workers)
