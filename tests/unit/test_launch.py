"""When a training is started anew. Mocked: how Ray Train ended it, since no loss can be timed to the workers' start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from smooth.config import RunConfig
from smooth.train import launch
from smooth.train.job import TrainJob

LOST = ControllerError(ActorDiedError())
JOB = TrainJob(RunConfig.load("tiny", ["train.max_failures=2"]), "", "", "")


def outcome_after(ends: list[TrainingFailedError | str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def fit() -> SimpleNamespace:
        end = ends.pop(0)
        if isinstance(end, TrainingFailedError):
            raise end
        return SimpleNamespace(return_value=end)

    monkeypatch.setattr(launch, "_trainer", lambda *_: SimpleNamespace(fit=fit))
    return launch._train(JOB, "run")


def test_workers_lost_while_they_start_are_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert outcome_after([LOST, LOST, "trained"], monkeypatch) == "trained"
    assert caplog.text.count("a worker was lost while the workers started") == 2


@pytest.mark.parametrize(
    ("ends", "left"),
    [
        ([LOST, LOST, LOST, "never"], 1),  # more than max_failures
        ([WorkerGroupError("in training", {0: ValueError("of ours")}), "never"], 1),  # Ray has counted these itself
        ([ControllerError(ValueError("of ours")), "never"], 1),
    ],
)
def test_what_a_new_start_would_not_change_ends_the_stage_and_says_how_to_go_on(
    ends: list[TrainingFailedError | str], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingFailedError) as caught:
        outcome_after(ends, monkeypatch)
    assert len(ends) == left
    assert "run the stage again, and it goes on from its last checkpoint" in " ".join(caught.value.__notes__)
