"""Shards as Ray tasks: so many at once, tried again after a worker's death or an error, none left behind."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from smooth import cluster
from smooth.config import IngestConfig
from smooth.data.guard import FetchPolicy

SHARD_DIGITS = 5
SHARD_TRIES = 2
WORKER_DEATHS = 3  # of a worker that fetches the same shard; Ray starts it again elsewhere
ROWS_PER_PROCESS = 160_000  # decoders and fsspec leak over days; a fresh process costs the import of img2dataset


class IngestError(RuntimeError):
    """The list could not be fetched as a whole; the message counts what is missing."""


@dataclass(frozen=True)
class ShardJob:
    """What a process needs to know to fetch a shard."""

    config: IngestConfig
    policy: FetchPolicy
    folder: str
    part: str
    """Parquet file of allowed rows that holds the shard's"""
    first: int
    """number of the part's first shard"""
    last: int
    """and of its last"""
    number: int
    rows: int

    @property
    def name(self) -> str:
        """What the shard's files begin with."""
        return f"{self.number:0{SHARD_DIGITS}d}"


def fetch(job: ShardJob) -> dict[str, Any]:
    """Run one job in a Ray worker."""
    from smooth.data.download import download  # img2dataset: once for each worker, not for the stage's driver

    return download(job)


def fetch_shards(jobs: Iterable[ShardJob], config: IngestConfig) -> Generator[dict[str, Any], None, None]:
    """Yield what :func:`smooth.data.download.download` says of each shard, in the order in which they end.

    At most ``config.processes`` tasks are at work. Closing the generator ends them.

    Raises:
        ValueError: no node has ``config.node_resource``.
        IngestError: shards failed ``SHARD_TRIES`` times; all others are finished then.
    """
    cluster.connect()
    node = ray.get_runtime_context().get_node_id()
    # The built-in web is on this machine's loopback.
    place = "DEFAULT" if config.demo_web is None else NodeAffinitySchedulingStrategy(node, soft=False)
    # A task, not an actor: an idle worker is used again with all that it has imported.
    task: Any = ray.remote(
        num_cpus=1,
        resources=_resources(config),
        max_retries=WORKER_DEATHS,
        max_calls=max(1, ROWS_PER_PROCESS // config.shard_size),
        scheduling_strategy=place,
    )(fetch)
    waiting, again = iter(jobs), list[ShardJob]()
    tries: Counter[int] = Counter()
    errors: dict[int, str] = {}
    running: dict[Any, ShardJob] = {}
    try:
        while True:
            while (
                len(running) < config.processes and (job := again.pop() if again else next(waiting, None)) is not None
            ):
                running[task.remote(job)] = job
            if not running:
                break
            (ready,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                tries[job.number] += 1
                errors[job.number] = _last_line(error)
                if tries[job.number] < SHARD_TRIES:
                    again.append(job)
            else:
                errors.pop(job.number, None)
    finally:
        for reference in running:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(reference, force=True)
    if errors:
        number, message = next(iter(errors.items()))
        raise IngestError(
            f"{len(errors)} shards failed {SHARD_TRIES} times, shard {number} with: {message}; "
            "run the stage again to fetch only those"
        )


def _resources(config: IngestConfig) -> dict[str, float]:
    """What a task takes beside its CPU. The built-in web needs no way out, and its tasks have a node already."""
    name = config.node_resource
    if name is None or config.demo_web is not None:
        return {}
    if name not in ray.cluster_resources():  # Ray would wait for such a node for ever
        raise ValueError(
            f"no node of the cluster has the Ray resource {name!r} of ingest.node_resource: start one with "
            f"`ray start --resources='{{\"{name}\": 1}}'`, or set ingest.node_resource=null to fetch on any node"
        )
    return {name: 1.0}


def _last_line(error: Exception) -> str:
    """What a task's error says below its traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
