"""Ray: connect a stage to a cluster, and run a stage as a Ray job that can be followed, stopped and found again.

A job's id is made of the stage and its fingerprint, so whoever submits the same work a second time
(a retried task, a flow restarted after a crash) follows the job that is already running.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from smooth import progress, store
from smooth.config import RunConfig, Stage
from smooth.settings import Services

TAIL_LINES = 8
STOP_SECONDS = 20.0
USER_ERROR_EXIT = 2


class ClusterError(ValueError):
    """The cluster can't be reached, or nobody said where it is."""


class StageError(RuntimeError):
    """A stage's job ended in failure; the message holds the end of its log.

    ``retryable`` is False when the stage refused its input: the same again would fail the same way.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


def connect() -> None:
    """Connect this process to Ray: to ``$RAY_ADDRESS`` where it is set (as in every Ray job), else to a Ray of its own.

    Calling it again is harmless. The own Ray has at least two CPUs, the least a distributed stage needs.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level=logging.WARNING)
        return
    # "local", since None would join any Ray that happens to run on this machine.
    ray.init(address="local", num_cpus=max(2, os.cpu_count() or 1), logging_level=logging.WARNING)


class StageJob:
    """A stage that runs as a Ray job. Whoever follows it may end: the next submission finds it."""

    def __init__(self, client: JobSubmissionClient, job_id: str, stage: Stage, *, attached: bool) -> None:
        self._client = client
        self.job_id = job_id
        self.stage = stage
        self.attached = attached
        """Whether the job was already running and has only been found again."""

    def follow(self) -> Iterator[str]:
        """Yield the job's log line by line from its beginning until the job ends.

        Raises:
            StageError: the job failed or was stopped.
        """
        last: deque[str] = deque(maxlen=TAIL_LINES)
        with asyncio.Runner() as runner:
            lines = self._lines()
            while (line := runner.run(anext(lines, None))) is not None:
                if progress.parse(line) is None:
                    last.append(line)
                yield line
        self._check(list(last))

    async def _lines(self) -> AsyncIterator[str]:
        rest = ""
        async for chunk in self._client.tail_job_logs(self.job_id):
            *whole, rest = (rest + chunk).split("\n")
            for line in whole:
                yield line
        if rest:
            yield rest

    def _check(self, last: list[str]) -> None:
        info = self._client.get_job_info(self.job_id)
        if info.status == JobStatus.SUCCEEDED:
            return
        errors = [line for line in last if line.startswith("error: ")]
        if info.status == JobStatus.STOPPED:
            cause = "it was stopped"
        else:
            cause = errors[-1].removeprefix("error: ") if errors else (info.message or "no message").splitlines()[0]
        raise StageError(
            f"stage {self.stage} failed: {cause}\n"
            f"End of its log (all of it: `ray job logs {self.job_id}`):\n" + "\n".join(f"  {line}" for line in last),
            retryable=info.driver_exit_code != USER_ERROR_EXIT and info.status != JobStatus.STOPPED,
        )

    def stop(self) -> None:
        """Stop the job and wait, some seconds at most, until it has ended."""
        self._client.stop_job(self.job_id)
        deadline = time.monotonic() + STOP_SECONDS
        while not self._client.get_job_status(self.job_id).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)


def submit_stage(stage: Stage, config: RunConfig) -> StageJob:
    """Run ``stage`` as a Ray job, or find the job that already does.

    The run config is saved beside the artifacts, where the job's machine reads it.

    Raises:
        ClusterError: no cluster is known, or it does not answer.
    """
    services = Services.load()
    client = _client(services)
    config = _absolute(config)
    fingerprint = config.fingerprint(stage)
    running, attempts = _jobs_of(client, stage, fingerprint)
    if running:
        return StageJob(client, running, stage, attached=True)
    config_path = store.join(config.storage.root, "configs", f"{stage}-{fingerprint}.yaml")
    store.write_bytes(config_path, config.to_yaml().encode())
    # The interpreter in full: the job would run with the PATH of whoever started the head.
    command = [sys.executable, "-m", "smooth", "stage", stage, "--config", config_path]
    environment = {"PYTHONUNBUFFERED": "1"}
    if services.mlflow_uri:
        environment["MLFLOW_TRACKING_URI"] = services.mlflow_uri
    job_id = _job_id(stage, fingerprint, attempts + 1)
    client.submit_job(
        entrypoint=f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(command)}",
        submission_id=job_id,
        runtime_env={"env_vars": environment},
        metadata={"stage": stage, "fingerprint": fingerprint, "preset": config.preset},
    )
    return StageJob(client, job_id, stage, attached=False)


def _client(services: Services) -> JobSubmissionClient:
    if services.ray_dashboard is None:
        raise ClusterError(
            "no Ray cluster is known: run `make cluster-up`, or set RAY_API_SERVER_ADDRESS "
            "(http://host:8265) and RAY_AUTH_TOKEN_PATH of a cluster that runs"
        )
    headers = {}
    if services.ray_token_path:
        headers["Authorization"] = f"Bearer {Path(services.ray_token_path).read_text().strip()}"
    try:
        return JobSubmissionClient(services.ray_dashboard, headers=headers)
    except ConnectionError as error:
        raise ClusterError(
            f"Ray does not answer at {services.ray_dashboard} ({error}); look at `make cluster-status`"
        ) from error


def _job_id(stage: Stage, fingerprint: str, attempt: int) -> str:
    return f"smooth-{stage}-{fingerprint}-{attempt}"


def _jobs_of(client: JobSubmissionClient, stage: Stage, fingerprint: str) -> tuple[str | None, int]:
    """The id of the running job of this work, if any, and the highest attempt so far."""
    pattern = re.compile(re.escape(_job_id(stage, fingerprint, 0).removesuffix("0")) + r"(\d+)")
    running, attempts = None, 0
    for job in client.list_jobs():
        match = pattern.fullmatch(job.submission_id or "")
        if match is None:
            continue
        attempts = max(attempts, int(match[1]))
        if not job.status.is_terminal():
            running = job.submission_id
    return running, attempts


def _absolute(config: RunConfig) -> RunConfig:
    """The same run with an artifact root that means the same in every working directory."""
    root = config.storage.root
    if "://" in root:
        return config
    storage = config.storage.model_copy(update={"root": str(Path(root).absolute())})
    return config.model_copy(update={"storage": storage})
