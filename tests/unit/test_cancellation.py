"""A cancelled flow: all of its jobs are stopped at once, and none is submitted afterwards."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.states import Cancelled, Cancelling, Running, State
from prefect.task_engine import TaskRunTimeoutError
from prefect.utilities.timeout import timeout

from flows import stages
from smooth import cluster
from smooth.config import RunConfig

JOBS = 3
RUN = "6f7ed2a2-6c3f-4f2b-9a57-0a0c7bb9a9d1"


class Job:
    """Runs until it is stopped, which takes until all others are being stopped, too."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier
        self.stopped = False

    def stop(self) -> None:
        self.barrier.wait(timeout=60)
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
            running.wait(timeout=60)
            cancelled.wait(timeout=60)

    def cancel() -> None:
        with stages.stopping_jobs():
            running.wait(timeout=60)
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


@pytest.mark.parametrize("thread", [False, True])
def test_a_timeout_of_the_task_stops_its_job_and_one_of_a_connection_does_not(jobs: list[Job], thread: bool) -> None:
    config = RunConfig.load("tiny")

    def follow() -> None:
        with stages._JOBS.submitted("train", config) as job:
            job.barrier = threading.Barrier(1)
            for _ in range(1000):
                time.sleep(0.05)

    def run() -> None:
        with timeout(0.5, timeout_exc_type=TaskRunTimeoutError):
            follow()

    with pytest.raises(TaskRunTimeoutError), ThreadPoolExecutor(1) as pool:
        pool.submit(run).result() if thread else run()
    assert [job.stopped for job in jobs] == [True]
    with pytest.raises(TimeoutError), stages._JOBS.submitted("train", config):
        raise TimeoutError
    assert [job.stopped for job in jobs] == [True, False]


class Server:
    """In the place of Prefect's client: the run's state, or the error that comes of asking."""

    answer: State[Any] | Exception = Running()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_flow_run(self, run_id: UUID) -> Server:
        assert str(run_id) == RUN
        if isinstance(self.answer, Exception):
            raise self.answer
        return self

    @property
    def state(self) -> State[Any] | Exception:
        return self.answer


def test_a_run_looks_whether_it_was_cancelled_and_waits_for_a_server_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    monkeypatch.setattr(stages, "get_client", lambda **_: server)
    server.answer = Cancelling()
    assert not stages._Cancellation(RUN).is_meant()  # too soon to look
    assert not stages._Cancellation(None).is_meant()
    monkeypatch.setattr(stages, "LOOK_SECONDS", 0)
    watch = stages._Cancellation(RUN)
    assert watch.is_meant()
    server.answer = Running()
    assert not watch.is_meant()
    server.answer = httpx.ConnectError("away")
    assert not watch.is_meant()
    server.answer = Cancelled()
    assert watch.is_meant()
