"""The actor that estimates ISTD: what holds it up or kills it is said and never stops a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from smooth.config import RunConfig, resolve_model
from smooth.train.job import TrainJob
from smooth.train.watch import IstdWatch
from tests.unit.test_estimate import PROTOCOL

pytestmark = pytest.mark.usefixtures("ray_local")
WEIGHTS = {"layer": torch.ones(3)}


class Log(list[tuple[dict[str, float], int]]):
    """What was logged."""

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        self.append((dict(metrics), step))


def watch(small_base: str, folder: Path, log: Log, *overrides: str) -> IstdWatch:
    config = RunConfig.load("tiny", list(overrides))
    return IstdWatch(TrainJob(config, resolve_model(small_base), "", str(folder)), replace(PROTOCOL, frames=3), log)


def test_what_comes_too_early_is_skipped_and_what_comes_too_late_is_given_up(
    small_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()
    starved = watch(small_base, tmp_path, log, "train.istd_gpus=1")  # there is none: it waits for ever
    starved.take(WEIGHTS, 10)
    starved.take(WEIGHTS, 20)
    starved.take(WEIGHTS, 30)
    assert log == [({"istd_estimate/skipped": 1}, 20), ({"istd_estimate/skipped": 2}, 30)]
    starved.close(seconds=0.1)
    assert "no ISTD estimate at step 20: that of step 10 is not done; raise train.istd_every" in caplog.text
    assert "no ISTD estimate at step 10: it took more than 0.1 s" in caplog.text


def test_a_dead_actor_is_said(small_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    dead = watch(small_base, tmp_path, log)
    ray.kill(dead._actor)
    for step in (10, 20):
        dead.take(WEIGHTS, step)
        dead.poll(seconds=60)
        assert f"no ISTD estimate at step {step}, the training goes on without it" in caplog.text
    dead.close()
    assert log == []
