"""The evaluate stage: base against fine-tuned on the same prompts and noises, sampled by Ray actors."""

from __future__ import annotations

import io
import posixpath
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.util import ActorPool

from smooth import cluster, store, tracking
from smooth.config import STAGE_VERSIONS, RunConfig
from smooth.evaluate import inception, report
from smooth.evaluate.compare import metric_key, metrics_of, summary_of
from smooth.evaluate.protocol import Protocol, reference_pictures
from smooth.evaluate.sampling import Measurement, Sampling
from smooth.evaluate.subjects import Subject
from smooth.evaluate.worker import Model, Painter

ACTOR_RESTARTS = 2


def run(config: RunConfig) -> dict[str, Any]:
    """Measure both models, draw the strips and curves, log all of it to the model's MLflow run.

    Finished blocks of pictures are kept on the way, so a retry continues; the base's are shared by all evaluations
    under the same protocol.

    Raises:
        store.ArtifactError: the training or what it was made from is not finished.
        ConfigError: Inception-v3's weights are named and not there, or not what they should be.
    """
    folder = config.stage_dir("evaluate")
    if store.is_complete(folder):
        return store.read_manifest(folder)
    started = time.monotonic()
    training = store.read_manifest(config.stage_dir("train"))
    weights = inception.find(config.evaluate.inception_weights)
    protocol = replace(Protocol.of(config), inception=weights.sha256 if weights else "")
    protocol, base, smooth, reference = _measure(config, protocol, weights)
    metrics = metrics_of(protocol, base, smooth, reference)
    store.write_json(store.join(folder, "metrics.json"), [metric.as_dict() for metric in metrics])
    report.draw_strips(store.join(folder, "strips.png"), protocol.prompts, base.strips, smooth.strips)
    report.draw_curves(store.join(folder, "curves.png"), base.distances, smooth.distances)
    pictures = ["strips.png", "curves.png"]
    with tracking.resume_run(training["run_id"]) as tracked:
        tracked.set_tags(tracking.fingerprint_tags(config, ("evaluate",)))
        tracked.log_metrics({metric_key(metric): metric.value for metric in metrics if metric.value is not None})
        tracked.log_artifact(store.join(folder, "metrics.json"), "evaluate")
        for picture in pictures:
            tracked.log_picture(store.join(folder, picture), "evaluate")
    return store.write_manifest(
        folder,
        {
            "stage": "evaluate",
            "fingerprint": config.fingerprint("evaluate"),
            "seconds": time.monotonic() - started,
            "summary": summary_of(metrics, base.distances, smooth.distances, protocol.seed),
            "pictures": pictures,
            "metrics": [metric.as_dict() for metric in metrics],
            "protocol": protocol.fingerprint,
            "run_id": training["run_id"],
            "ingest": training["ingest"],
        },
    )


def _measure(
    config: RunConfig, protocol: Protocol, weights: inception.Weights | None
) -> tuple[Protocol, Measurement, Measurement, npt.NDArray[np.float32]]:
    """Base, fine-tuned, the reference pictures' features, and the protocol with the prompts that it took.

    Only what is not there yet is sampled.
    """
    folder, evaluate = config.stage_dir("evaluate"), config.evaluate
    shared = store.join(posixpath.dirname(folder), f"base-{STAGE_VERSIONS['evaluate']}-{protocol.fingerprint}")
    name = f"{evaluate.batch_size}{protocol.networks}"
    folders: dict[Model, str] = {
        "base": store.join(shared, f"blocks-{name}"),
        "smooth": store.join(folder, f"blocks-{name}"),
    }
    reference_path = store.join(shared, "reference.npz")
    sampling = Sampling(protocol, folders, evaluate.batch_size)
    with Studio(config, protocol, weights) as studio:
        if not store.exists(reference_path):
            _save(reference_path, features=_reference_features(config, studio.pool()))
        prompts = sampling.run(studio.pool, evaluate.until_ci)
    reference = _load(reference_path)["features"]
    return (
        protocol.stopped(prompts, evaluate.until_ci),
        sampling.measurement("base", prompts),
        sampling.measurement("smooth", prompts),
        reference,
    )


class Studio(AbstractContextManager["Studio"]):
    """Sampling actors, from the moment that there is something to sample; gone afterwards.

    A dead one is restarted and its block sampled again.
    """

    def __init__(self, config: RunConfig, protocol: Protocol, weights: inception.Weights | None) -> None:
        self._config = config
        self._protocol = protocol
        self._weights = weights
        self._actors: list[Any] = []
        self._arguments: tuple[Any, ...] = ()  # held while there are actors: one that is restarted takes them again

    def pool(self) -> ActorPool:
        """All actors, free."""
        if not self._actors:
            self._actors = self._start()
        return ActorPool(self._actors)

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def _start(self) -> list[Any]:
        cluster.connect()
        evaluate, model = self._config.evaluate, self._config.model
        actor: Any = ray.remote(Painter).options(
            num_cpus=1,
            num_gpus=evaluate.gpus_per_actor,
            max_restarts=ACTOR_RESTARTS,
            max_task_retries=ACTOR_RESTARTS,
        )
        base = Subject(model.base, model.revision)
        subjects = {"base": base, "smooth": replace(base, trained=self._config.stage_dir("train"))}
        cuda = evaluate.gpus_per_actor > 0
        self._arguments = (subjects, ray.put(self._protocol), cuda, ray.put(self._weights))
        return [actor.remote(*self._arguments) for _ in range(evaluate.actors)]


def _reference_features(config: RunConfig, pool: ActorPool) -> npt.NDArray[np.float32]:
    """Features of as many ingested pictures as are sampled, at the models' image size."""
    evaluate = config.evaluate
    batches = reference_pictures(
        config.stage_dir("ingest"), evaluate.pictures, config.latents.image_size, config.seed, evaluate.batch_size
    )
    return np.concatenate(list(pool.map(lambda actor, batch: actor.features.remote(batch), list(batches))))


def _save(path: str, **arrays: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    store.write_bytes(path, buffer.getvalue())


def _load(path: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(io.BytesIO(store.read_bytes(path)), allow_pickle=False) as arrays:
        return dict(arrays)
