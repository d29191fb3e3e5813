"""The train stage: Ray Train starts the workers, restarts them after failures and keeps their checkpoints."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from smooth import cluster, store, tracking
from smooth.config import ConfigError, RunConfig, TrainConfig, resolve_model
from smooth.evaluate.protocol import Protocol
from smooth.models import WEIGHTS_NAME
from smooth.train.job import Place, TrainJob, ignore
from smooth.train.state import TrainError
from smooth.train.storage import WholeFiles

logger = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"
SUMMARY = (
    "workers",
    "loss",
    "loss_base",
    "regularizer",
    "norm",
    "target",
    "difference_error",
    "skipped_steps",
    "samples_per_second",
)
WORKER_START_SECONDS = 300  # Ray's own 60 s are too few where importing torch on busy cores takes half of it
ELASTIC_START_SECONDS = 120  # Ray may count on a host for some seconds after its death, and waits this long in vain


class Outcome(TypedDict):
    """What rank 0 returns: how training ended, or why it can't go on."""

    step: int
    samples_seen: int
    metrics: dict[str, float]
    refused: str | None


def run(config: RunConfig) -> dict[str, Any]:
    """Fine-tune the base model on the cached latents; return the manifest of the train stage.

    An interrupted stage goes on from its last checkpoint.

    Raises:
        ArtifactError: the latents are not there.
        TrainError: the loss diverged, or the checkpoint in the folder doesn't fit this run.
        ray.train.TrainingFailedError: workers failed more than ``train.max_failures`` times.
    """
    folder = config.stage_dir("train")
    if store.is_complete(folder):
        return store.read_manifest(folder)
    started = time.monotonic()
    latents = config.stage_dir("latents")
    data = store.read_manifest(latents)
    base = resolve_model(config.model.base)
    job = TrainJob(
        config, str(Path(base).resolve()) if Path(base).is_dir() else base, latents, folder, _protocol(config)
    )
    cluster.connect()
    fingerprint = config.fingerprint("train")
    with tracking.start_run(config, name=f"train-{fingerprint[:8]}") as mlflow_run:
        outcome = _train(job, mlflow_run.run_id)
        if outcome["refused"]:
            raise TrainError(outcome["refused"])
        config_path = store.join(folder, "run_config.yaml")
        store.write_bytes(config_path, config.to_yaml().encode())
        mlflow_run.log_artifact(config_path, "adapter")
        if config.train.method == "lora":  # a whole UNet goes to MLflow only where it is registered
            mlflow_run.log_artifact(store.join(folder, WEIGHTS_NAME), "adapter")
        mlflow_run.settle()
        # Inside the run: one that ended without a manifest would be followed by a second on a retry.
        manifest = {
            "stage": "train",
            "fingerprint": fingerprint,
            "seconds": time.monotonic() - started,
            "run_id": mlflow_run.run_id,
            "ingest": data["ingest"],
            "base": config.model.base,
            "steps": outcome["step"],
            "samples_seen": outcome["samples_seen"],
            "final": outcome["metrics"],
            "summary": _summary(config.train, outcome),
            "pictures": _pictures(folder),
        }
        return store.write_manifest(folder, manifest)


def _protocol(config: RunConfig) -> Protocol | None:
    """Of the ISTD estimates during training, where it has any."""
    return None if config.train.istd_every is None else Protocol.of(config).first(config.train.istd_prompts)


def _train(job: TrainJob, run_id: str) -> Outcome:
    """Train to the end; start again where Ray Train doesn't, from the last checkpoint as it does.

    It starts again when a worker is lost in training, and ends the run when one is lost while they get together.
    """
    max_failures = job.config.train.max_failures
    patience = ELASTIC_START_SECONDS if job.config.train.min_workers else WORKER_START_SECONDS
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(patience))
    starts = 0
    while True:
        starts += 1
        try:
            outcome: Outcome = _trainer(job, run_id).fit().return_value
        except ray.train.TrainingFailedError as error:
            failure = error.controller_failure if isinstance(error, ray.train.ControllerError) else None
            if starts > max_failures or not isinstance(failure, RayError):
                error.add_note(
                    f"It failed more than train.max_failures={max_failures} times, or in a way that a new start would "
                    "not change. Nothing is lost: run the stage again, and it goes on from its last checkpoint."
                )
                raise
            logger.warning("a worker was lost while the workers started: they are started again (%s)", failure)
        else:
            return outcome


def _trainer(job: TrainJob, run_id: str) -> TorchTrainer:
    config = job.config.train
    cpus = _cpus_per_worker(config)
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job, "run_id": run_id},
        torch_config=TorchConfig(backend="nccl" if config.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(config.min_workers, config.workers) if config.min_workers else config.workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": cpus, **({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {})},
        ),
        run_config=ray.train.RunConfig(
            # Ray finds the checkpoints of an earlier, interrupted attempt under the same path and name.
            storage_path=job.folder,
            storage_filesystem=None if "://" in job.folder else WholeFiles(),
            name=CHECKPOINTS,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            worker_runtime_env={
                "env_vars": {
                    # More threads than cores spin against each other: ten times slower.
                    "OMP_NUM_THREADS": str(cpus),
                    # Ray's replacement of print() writes every line twice, to the log and to the stream.
                    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
                    "MLFLOW_TRACKING_URI": tracking.tracking_uri(),
                }
            },
        ),
    )


def _cpus_per_worker(config: TrainConfig) -> int:
    """A worker's share of the cluster's CPUs: it reserves what its threads use."""
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    share = int(sum(nodes)) // config.workers
    return max(1, min(share, int(max(nodes, default=1))))


def _worker(settings: dict[str, Any]) -> Outcome:
    """One rank of the training, started by Ray Train inside a process group."""
    # Here, not above: diffusers takes ten seconds to import, and the driver and the controller need none of it.
    from smooth.train.loop import Training
    from smooth.train.upload import upload

    job: TrainJob = settings["job"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    with ExitStack() as stack:
        checkpoint = partial(upload, config=job.config.train)
        place = Place(rank, context.get_world_size(), _device(), ignore, ignore, checkpoint)
        finish = ignore
        if rank == 0:
            place, finish = _telling(
                place, job, stack.enter_context(tracking.resume_run(settings["run_id"], job.folder))
            )
        try:
            with _restored() as folder:
                state = Training(job, place).run(folder)
        except (TrainError, ConfigError) as error:
            # Raised alike on every rank. Returned, since Ray would start the workers again after an exception.
            return Outcome(step=0, samples_seen=0, metrics={}, refused=str(error))
        finish()
    return Outcome(step=state.step, samples_seen=state.samples_seen, metrics=state.metrics, refused=None)


def _telling(place: Place, job: TrainJob, mlflow_run: tracking.Run) -> tuple[Place, Callable[[], None]]:
    """Rank 0's place, which tells the MLflow run; and what ends the telling after the last step."""
    from smooth.train.watch import IstdWatch

    def picture(path: str, step: int) -> None:
        mlflow_run.send_picture(path, "validation", step)

    def checkpoint(write: Callable[[Path], None], step: int, loss: float) -> None:
        mlflow_run.flush()  # a run that goes on from here won't log these steps again
        place.checkpoint(write, step, loss)

    telling = replace(place, log=mlflow_run.log_metrics, picture=picture, checkpoint=checkpoint)
    if job.protocol is None:
        return telling, ignore
    watch = IstdWatch(job, job.protocol, mlflow_run.log_metrics)
    mlflow_run.set_tags({"smooth.istd_estimate": watch.label})

    def log(metrics: Mapping[str, float], step: int) -> None:
        mlflow_run.log_metrics(metrics, step)
        watch.poll()

    return replace(telling, log=log, estimate=watch.take), watch.close


def _device() -> torch.device:
    device: torch.device = get_device()
    return device


@contextmanager
def _restored() -> Iterator[Path | None]:
    """The local folder of the checkpoint to continue from, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def _summary(config: TrainConfig, outcome: Outcome) -> dict[str, float | int | str]:
    last = {name: float(f"{outcome['metrics'][name]:.4g}") for name in SUMMARY if name in outcome["metrics"]}
    return {
        "steps": outcome["step"],
        "samples": outcome["samples_seen"],
        "ZeRO stage": config.zero_stage,
        **last,
    }


def _pictures(folder: str) -> list[str]:
    fs, inner = store.filesystem(store.join(folder, "validation"))
    names = sorted(Path(path).name for path in fs.glob(f"{inner}/*.png"))
    return [f"validation/{name}" for name in names]
