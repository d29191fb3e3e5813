"""Rank 0's watch over the ISTD of what it trains: an actor samples while training goes on, and never stops it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from torch import Tensor

from smooth.evaluate.estimate import Estimator
from smooth.evaluate.metric import Metric
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.smoothness import stamp
from smooth.train.job import TrainJob

logger = logging.getLogger(__name__)
PREFIX = "istd_estimate"
LAST_SECONDS = 600  # that the end of a training waits for the last value


class IstdWatch:
    """Hands weights to the actor by the object store and logs what comes back, at the step of the weights.

    The actor ends with this process. It reserves no CPU, since training takes all of them.
    """

    def __init__(self, job: TrainJob, protocol: Protocol, log: Callable[[Mapping[str, float], int], None]) -> None:
        """Start the actor; ``log`` takes (metrics, step)."""
        config = job.config.train
        self.label = (
            f"an estimate on the evaluation's first {len(protocol.prompts)} prompts, not its value: "
            f"{json.dumps(stamp(protocol), sort_keys=True)}"
        )
        self._log = log
        self._skipped = 0
        self._pending: tuple[Any, int] | None = None  # the value to come, and the step of its weights
        actor: Any = ray.remote(Estimator).options(
            num_cpus=0,
            num_gpus=config.istd_gpus,
            max_restarts=1,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
        self._actor = actor.remote(
            job.base,
            job.config.model.revision,
            config,
            protocol,
            batch_size=job.config.evaluate.batch_size,
            cuda=config.istd_gpus > 0,
        )

    def take(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Let the actor judge float32 CPU ``weights`` by parameter, unless it is still at those of an earlier step."""
        self.poll()
        if self._pending is not None:
            self._skipped += 1
            self._log({f"{PREFIX}/skipped": self._skipped}, step)
            logger.warning(
                "no ISTD estimate at step %d: that of step %d is not done; raise train.istd_every, lower "
                "train.istd_prompts, or see that train.istd_gpus are free",
                step,
                self._pending[1],
            )
            return
        try:
            # As arrays, which the store holds and gives without a copy.
            shared = ray.put({name: weight.numpy() for name, weight in weights.items()})
        except RayError as error:
            self._miss(step, error)
            return
        self._pending = self._actor.estimate.remote(shared), step

    def poll(self, seconds: float = 0) -> None:
        """Log the value that has come, if one has; wait so long for it."""
        if self._pending is None:
            return
        reference, step = self._pending
        if not ray.wait([reference], timeout=seconds)[0]:
            return
        self._pending = None
        try:
            metrics: list[Metric] = ray.get(reference)
        except RayError as error:
            self._miss(step, error)
            return
        self._log(named(metrics), step)

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """Wait so long for the last value, then end the actor."""
        self.poll(seconds)
        if self._pending is not None:
            logger.warning("no ISTD estimate at step %d: it took more than %g s", self._pending[1], seconds)
        ray.kill(self._actor)

    def _miss(self, step: int, error: RayError) -> None:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        logger.warning("no ISTD estimate at step %d, the training goes on without it: %s", step, reason[-1])


def named(metrics: list[Metric]) -> dict[str, float]:
    """Estimates as MLflow shows them: ``istd_estimate/smooth`` and so on, with the number of prompts."""
    values: dict[str, float] = {f"{PREFIX}/prompts": metrics[0].n}
    for metric in metrics:
        name = f"{PREFIX}/{metric.model.replace('smooth - base', 'difference')}"
        found = {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
        values |= {key: value for key, value in found.items() if value is not None}
    return values
