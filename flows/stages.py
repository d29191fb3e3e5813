"""One Prefect task per stage: a Ray job that is followed, retried, timed out, and reused by its fingerprint."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect import State, Task, get_run_logger, task
from prefect._internal.control_listener import get_intent
from prefect.cache_policies import CachePolicy
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.context import TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run

from flows import reports
from smooth import stages, store
from smooth.config import RunConfig, Stage

if TYPE_CHECKING:
    from smooth.cluster import StageJob

HOUR = 3600.0
LOOK_SECONDS = 15.0


@dataclass(frozen=True)
class Policy:
    """How long a stage may take, and how often it is tried again."""

    timeout_s: float
    retries: int = 2
    retry_delay_s: float = 5.0


POLICIES: dict[Stage, Policy] = {
    "ingest": Policy(timeout_s=48 * HOUR, retries=3),
    "latents": Policy(timeout_s=48 * HOUR),
    "train": Policy(timeout_s=14 * 24 * HOUR),
    "evaluate": Policy(timeout_s=24 * HOUR),
    "register": Policy(timeout_s=1 * HOUR, retries=3),
}


def run_stage(stage: Stage, config: RunConfig) -> dict[str, Any]:
    """Run ``stage`` as a task of the current flow and return its manifest.

    Unchanged inputs mean an unchanged fingerprint: the stored result is then reused, unless its artifact is gone.

    Raises:
        smooth.cluster.StageError: the stage failed, retries included.
    """
    return configured(stage, config)(stage, config)


def configured(stage: Stage, config: RunConfig) -> Task[[Stage, RunConfig], dict[str, Any]]:
    """The task of ``stage`` with its policy: call it, or submit it to run beside others."""
    policy = POLICIES[stage]
    return stage_task.with_options(
        name=stage,
        task_run_name=f"{stage} {config.fingerprint(stage)[:8]}",
        timeout_seconds=policy.timeout_s,
        retries=policy.retries,
        retry_delay_seconds=policy.retry_delay_s,
        refresh_cache=stages.status(stage, config) != "complete",
    )


def cache_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """One key for each artifact folder: its name holds the stage and the fingerprint."""
    config: RunConfig = parameters["config"]
    stage: Stage = parameters["stage"]
    return f"{stage}-{hashlib.sha256(config.stage_dir(stage).encode()).hexdigest()[:16]}"


def is_worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the same again may succeed: not when a stage refused its input or a person stopped it."""
    from smooth.cluster import StageError

    error = state.result(raise_on_failure=False)
    return not (isinstance(error, StageError) and not error.retryable)


@task(
    persist_result=True,
    cache_policy=CachePolicy.from_cache_key_fn(cache_key),
    retry_condition_fn=is_worth_retrying,
)
def stage_task(stage: Stage, config: RunConfig) -> dict[str, Any]:
    """Run the stage as a Ray job, show its progress and log, and report what it made."""
    folder = config.stage_dir(stage)
    if stages.status(stage, config) != "complete":
        _run_job(stage, config)
    manifest = store.read_manifest(folder)
    reports.show_manifest(stage, folder, manifest)
    return manifest


def _run_job(stage: Stage, config: RunConfig) -> None:
    from smooth.cluster import StageError

    logger = get_run_logger()
    follower = reports.Follower(stage, logger)
    with _JOBS.submitted(stage, config) as job:
        logger.info("%s Ray job %s", "found the running" if job.attached else "submitted", job.job_id)
        watch = _Cancellation(flow_run.get_id())
        for line in job.follow():
            follower.feed(line)
            if watch.is_meant():
                job.stop()
                raise StageError(f"stage {stage} was stopped: the flow run was cancelled", retryable=False)
    follower.finish()


class _Cancellation:
    """Looks at the run's own state now and then: a worker whose server was away may never hear of a cancellation.

    It is asked at each line of the job's log, and each stage tells its progress.
    """

    def __init__(self, run_id: str | None) -> None:
        self._run_id = run_id
        self._looked_at = time.monotonic()

    def is_meant(self) -> bool:
        """Whether the run is being cancelled, as its server knew at the last look."""
        if self._run_id is None or time.monotonic() - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = time.monotonic()
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(UUID(self._run_id)).state
        except httpx.TransportError:
            return False
        return state is not None and (state.is_cancelling() or state.is_cancelled())


def is_meant(error: BaseException) -> bool:
    """Whether whoever interrupted the flow wants its jobs stopped: a cancellation, a timeout, Ctrl-C.

    A worker that is restarted, or moved to another machine, ends its flows by the same signal as a cancellation and
    says no more; one that was killed leaves them a broken pipe, at which they exit. Then, as after an error, jobs go
    on, and the next to run the flow finds them. A task's timeout comes as ``CancelledError`` to its own code.
    """
    if isinstance(error, TerminationSignal):
        return get_intent() == "cancel"
    return isinstance(error, asyncio.CancelledError | KeyboardInterrupt)


class _Jobs:
    """The jobs that this process follows, from any of its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a job is either among the followed before they are stopped, or not submitted
        self._stopped = threading.Event()
        self._followed: set[StageJob] = set()

    @contextmanager
    def submitted(self, stage: Stage, config: RunConfig) -> Iterator[StageJob]:
        """Submit a stage, or find its job.

        Raises:
            StageError: the flow was cancelled.
        """
        from smooth.cluster import StageError, submit_stage  # Ray: not needed where a stage is reused

        with self._lock:
            if self._stopped.is_set():
                raise StageError(f"stage {stage} was not submitted: the flow was cancelled", retryable=False)
            job = submit_stage(stage, config)
            self._followed.add(job)
        try:
            yield job
        except BaseException as error:
            if is_meant(error):
                job.stop()
            raise
        finally:
            self._followed.discard(job)

    def open(self) -> None:
        """Submit again, for another flow."""
        self._stopped.clear()

    def stop(self) -> None:
        """Stop all at once, each with a thread that waits for its end; from now on none is submitted."""
        self._stopped.set()
        with self._lock:
            jobs = list(self._followed)
        if jobs:
            with ThreadPoolExecutor(len(jobs)) as pool:
                for stopped in [pool.submit(job.stop) for job in jobs]:
                    stopped.result()


_JOBS = _Jobs()


@contextmanager
def stopping_jobs() -> Iterator[None]:
    """Stop all jobs that submitted tasks follow when the flow is interrupted, and let waiting ones submit nothing.

    A cancellation reaches the main thread alone, and they follow their jobs in others.
    """
    _JOBS.open()
    try:
        yield
    except BaseException as error:
        if is_meant(error):
            _JOBS.stop()
        raise
