"""A cancelled flow: all of its jobs are stopped at once, and none is submitted afterwards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flows import stages
from smooth import cluster
from smooth.config import RunConfig

JOBS = 3


class Job:
    """Runs until it is stopped, which takes until all others are being stopped, too."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier
        self.stopped = False

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stop(self) -> None:
        self.barrier.wait(timeout=10)
        self.stopped = True


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What was submitted."""
    submitted: list[Job] = []
    barrier = threading.Barrier(JOBS)

    def submit(*_: Any) -> Job:
        submitted.append(Job(barrier))
        return submitted[-1]

    monkeypatch.setattr(cluster, "submit_stage", submit)
    return submitted


def test_all_jobs_are_stopped_at_once_and_a_waiting_one_is_not_submitted(jobs: list[Job]) -> None:
    config = RunConfig.load("tiny")
    cancelled = threading.Event()
    running = threading.Barrier(JOBS + 1)

    def follow() -> None:
        with stages._JOBS.submitted("train", config):
            running.wait(timeout=10)
            cancelled.wait(timeout=10)

    def cancel() -> None:
        with stages.stopping_jobs():
            running.wait(timeout=10)
            raise KeyboardInterrupt

    with ThreadPoolExecutor(JOBS) as pool:
        followers = [pool.submit(follow) for _ in range(JOBS)]
        with pytest.raises(KeyboardInterrupt):
            cancel()
        with pytest.raises(cluster.StageError, match="not submitted: the flow was cancelled") as refused:
            follow()
        cancelled.set()
        for follower in followers:
            follower.result()
    assert not refused.value.retryable
    assert [job.stopped for job in jobs] == [True] * JOBS


def test_an_error_of_the_flow_stops_nothing_and_another_flow_submits_again(jobs: list[Job]) -> None:
    def fail() -> None:
        with stages.stopping_jobs(), stages._JOBS.submitted("train", RunConfig.load("tiny")):
            raise ValueError("of the flow")

    for _ in range(2):
        with pytest.raises(ValueError, match="of the flow"):
            fail()
    with pytest.raises(KeyboardInterrupt), stages.stopping_jobs():
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="of the flow"):
        fail()
    assert [job.stopped for job in jobs] == [False] * 3
