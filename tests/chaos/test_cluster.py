"""Two workers on two hosts, one of them cut off: the other goes on. ``python -m pytest tests/chaos -s``."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests import history, hosts, small
from tests.stages import GLOBAL, TrainStage, distance, prepare

pytestmark = [hosts.needed, pytest.mark.timeout(1800)]

STEPS, EVERY, ROWS = 60, 10, 25
CUT_AT = 25
# Of Ray's own: after 10 to 15 s without an answer a host is lost; by default it is a minute.
HEALTH = {"RAY_health_check_period_ms": "2000", "RAY_health_check_timeout_ms": "2000"}


def test_training_goes_on_without_a_host_that_is_cut_off(tmp_path: Path) -> None:
    base = small.write_pipeline(tmp_path / "base")
    settings = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "OMP_NUM_THREADS": "1", **HEALTH}
    # A difference divides roundings by its step, and tiny's learning rate makes them grow thirty times as fast.
    exact = "train.variation.estimator=double_backward", "train.variation.weight=1", "train.learning_rate=1e-4"
    changes = (f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", "train.min_workers=1", *exact)
    with hosts.connected(3, **settings) as cluster:
        cluster.start_nodes()
        calm, cut = (
            TrainStage(cluster, prepare(tmp_path / name, base, ROWS, *changes), tmp_path / f"{name}.log")
            for name in ("calm", "cut")
        )
        calm.start()
        calm.wait_for(lambda: calm.ended)
        cut.start()
        cut.wait_for(lambda: cut.step >= CUT_AT)
        pulled = time.monotonic()
        cluster.pull(2)
        cut.wait_for(lambda: cut.workers == 1)
        print(f"goes on with one worker {time.monotonic() - pulled:.0f} s after the cable was pulled")
        cut.wait_for(lambda: cut.ended)

        assert {line["workers"] for line in history.lines(calm.folder)[0]} == {2}
        assert cut.workers == 1
        history.check(cut.folder, STEPS, GLOBAL, ROWS)
        (restart,) = history.restarts(cut.folder)
        print(f"lost steps {restart.lost}, relative distance from the undisturbed end {distance(cut, calm):.1e}")
        assert restart.lost <= EVERY
        assert distance(cut, calm) <= 1e-5
