"""What a checkpoint says of the run that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from smooth.train.state import TrainError, TrainState


def test_state_survives_a_folder(tmp_path: Path) -> None:
    state = TrainState(seed=3, data="a", step=7, samples_seen=56, variation={"targets": [0.25], "count": 8})
    state.save(tmp_path)
    assert TrainState.load(tmp_path) == state


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (TrainState(seed=4, data="a"), "made with seed=3, this run has seed=4"),
        (TrainState(seed=3, data="b"), "`smooth ingest retry` changed the data"),
    ],
)
def test_another_seed_or_data_set_is_refused(now: TrainState, message: str) -> None:
    state = TrainState(seed=3, data="a")
    state.check_resumable(TrainState(seed=3, data="a", step=9))
    with pytest.raises(TrainError, match=message):
        state.check_resumable(now)
