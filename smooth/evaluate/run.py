"""The evaluate stage: base against fine-tuned on the same prompts and noises, sampled by Ray actors."""

from __future__ import annotations

import io
import posixpath
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.util import ActorPool

from smooth import cluster, progress, store, tracking
from smooth.config import STAGE_VERSIONS, RunConfig
from smooth.evaluate import diversity, inception, istd, report
from smooth.evaluate.compare import metric_key, metrics_of, summary_of
from smooth.evaluate.protocol import Protocol, reference_pictures
from smooth.evaluate.worker import Block, Model, Painter, blocks

ACTOR_RESTARTS = 2


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model."""

    distances: npt.NDArray[np.float64]
    """(P, F - 1) between neighbouring frames"""
    spreads: npt.NDArray[np.float64]
    """(P,) squared distances of each prompt's frames from the mean ones"""
    features: npt.NDArray[np.float32]
    """(N, D) as the painters give them"""
    strips: npt.NDArray[np.uint8]
    """(S, F, H, W, 3) the first S interpolations"""

    def save(self, path: str) -> None:
        """Write as one ``.npz``, atomically."""
        _save(path, **vars(self))

    @classmethod
    def load(cls, path: str) -> Measurement:
        """Read what :meth:`save` wrote."""
        return cls(**_load(path))


def run(config: RunConfig) -> dict[str, Any]:
    """Measure both models, draw the strips and curves, log all of it to the model's MLflow run.

    Finished blocks of pictures are kept on the way, so a retry continues; the base's measurement is shared by
    all evaluations under the same protocol.

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
    base, smooth, reference = _measure(config, protocol, weights)
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
) -> tuple[Measurement, Measurement, npt.NDArray[np.float32]]:
    """Base, fine-tuned and the reference pictures' features; only what is not there yet is sampled."""
    folder = config.stage_dir("evaluate")
    shared = store.join(posixpath.dirname(folder), f"base-{STAGE_VERSIONS['evaluate']}-{protocol.fingerprint}")
    paths: dict[Model, str] = {
        "base": store.join(shared, "base.npz"),
        "smooth": store.join(folder, f"smooth{protocol.networks}.npz"),
    }
    reference_path = store.join(shared, "reference.npz")
    if not all(store.exists(path) for path in (*paths.values(), reference_path)):
        with _painters(config, protocol, weights) as pool:
            if not store.exists(reference_path):
                _save(reference_path, features=_reference_features(config, pool))
            todo: list[Model] = [model for model, path in paths.items() if not store.exists(path)]
            for number, model in enumerate(todo):
                _measure_model(config, protocol, pool, model, number, len(todo)).save(paths[model])
    return Measurement.load(paths["base"]), Measurement.load(paths["smooth"]), _load(reference_path)["features"]


@contextmanager
def _painters(config: RunConfig, protocol: Protocol, weights: inception.Weights | None) -> Iterator[ActorPool]:
    """A pool of sampling actors that is gone afterwards; a dead one is restarted and its block sampled again."""
    cluster.connect()
    evaluate = config.evaluate
    actor: Any = ray.remote(Painter).options(
        num_cpus=1,
        num_gpus=evaluate.gpus_per_actor,
        max_restarts=ACTOR_RESTARTS,
        max_task_retries=ACTOR_RESTARTS,
    )
    shared = ray.put(protocol)
    cuda = evaluate.gpus_per_actor > 0
    arguments = (config.model, config.stage_dir("train"), shared, cuda, ray.put(weights))
    actors = [actor.remote(*arguments) for _ in range(evaluate.actors)]
    try:
        yield ActorPool(actors)
    finally:
        for handle in actors:
            ray.kill(handle)


def _reference_features(config: RunConfig, pool: ActorPool) -> npt.NDArray[np.float32]:
    """Features of as many ingested pictures as are sampled, at the models' image size."""
    evaluate = config.evaluate
    batches = reference_pictures(
        config.stage_dir("ingest"), evaluate.pictures, config.latents.image_size, config.seed, evaluate.batch_size
    )
    return np.concatenate(list(pool.map(lambda actor, batch: actor.features.remote(batch), list(batches))))


def _measure_model(
    config: RunConfig, protocol: Protocol, pool: ActorPool, model: Model, number: int, models: int
) -> Measurement:
    """Sample what is missing of a model's blocks, then reduce them block by block."""
    size = config.evaluate.batch_size
    cache = store.join(config.stage_dir("evaluate"), "blocks", f"{model}-{size}{protocol.networks}")
    frames = blocks("frames", len(protocol.prompts) * protocol.frames, size)
    pictures = blocks("pictures", len(protocol.picture_prompts), size)
    missing = [block for block in (*frames, *pictures) if not store.exists(store.join(cache, block.name))]
    each = frames[-1].stop + pictures[-1].stop
    done = number * each + each - sum(block.stop - block.start for block in missing)
    tasks = pool.map_unordered(lambda actor, block: actor.result.remote(model, block), missing)
    for block, result in tasks:
        store.write_bytes(store.join(cache, block.name), _npy(result))
        done += block.stop - block.start
        progress.report("evaluate", done, models * each, "pictures", model=model)
    features = np.concatenate([_read_block(cache, block) for block in pictures])
    return Measurement(features=features, **_interpolations(cache, frames, protocol))


def _interpolations(cache: str, cut: list[Block], protocol: Protocol) -> dict[str, npt.NDArray[Any]]:
    """Distances, spreads and the first strips, one interpolation in memory at a time."""
    distances: list[npt.NDArray[np.float64]] = []
    strips: list[npt.NDArray[np.uint8]] = []
    for strip in _each_strip(cache, cut, protocol.frames):
        distances.append(istd.neighbour_distances(strip[None])[0])
        if len(strips) < protocol.strips:
            strips.append(strip)
    spreads = diversity.spreads(lambda: (strip / 255.0 for strip in _each_strip(cache, cut, protocol.frames)))
    return {"distances": np.stack(distances), "spreads": spreads, "strips": np.stack(strips)}


def _each_strip(cache: str, cut: list[Block], frames: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Interpolations (F, H, W, 3) in order; blocks may cut across."""
    waiting: list[npt.NDArray[np.uint8]] = []
    for block in cut:
        waiting += list(_read_block(cache, block))
        while len(waiting) >= frames:
            yield np.stack(waiting[:frames])
            del waiting[:frames]


def _read_block(cache: str, block: Block) -> npt.NDArray[Any]:
    loaded: npt.NDArray[Any] = np.load(io.BytesIO(store.read_bytes(store.join(cache, block.name))), allow_pickle=False)
    return loaded


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _save(path: str, **arrays: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    store.write_bytes(path, buffer.getvalue())


def _load(path: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(io.BytesIO(store.read_bytes(path)), allow_pickle=False) as arrays:
        return dict(arrays)
