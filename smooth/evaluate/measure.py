"""Both models under one protocol: what is sampled of them by Ray actors, and what they are measured against."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.util import ActorPool

from smooth import cluster, store
from smooth.config import STAGE_VERSIONS, RunConfig
from smooth.evaluate import inception, perceptual
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.real import Captioned, captioned_pictures, folder_pictures, reference_pictures
from smooth.evaluate.reconstruction import Reconstructed
from smooth.evaluate.sampling import Measurement, Sampling
from smooth.evaluate.subjects import Subject
from smooth.evaluate.worker import Model, Painter

ACTOR_RESTARTS = 2


@dataclass(frozen=True)
class Comparison:
    """Two models, and all that they are compared by."""

    config: RunConfig
    """how many actors there are, how much is sampled at once, where the reference pictures and all results lie"""
    protocol: Protocol
    weights: inception.Weights | None
    subjects: dict[Model, Subject]

    @property
    def folder(self) -> str:
        """Where pictures under the protocol are kept, each model's by its content: none is painted twice."""
        version = STAGE_VERSIONS["evaluate"]
        return store.join(evaluations(self.config), f"pictures-{version}-{self.protocol.fingerprint}")

    def blocks(self, model: Model) -> str:
        """Folder of a model's finished blocks."""
        name = f"blocks-{self.config.evaluate.batch_size}{self.protocol.networks}"
        identity = self.subjects[model].identity.replace("/", "--")
        return store.join(self.folder, identity, name)


@dataclass(frozen=True)
class Found:
    """What was measured."""

    protocol: Protocol
    """with the prompts that were taken"""
    base: Measurement
    smooth: Measurement
    reference: npt.NDArray[np.float32]
    """(M, D) features of the reference pictures"""
    real: Captioned | None
    """pictures that were painted again, if any"""
    network: PerceptualNetwork | None
    """LPIPS's, where its file is there"""
    sampled: int
    """pictures that were not there from before"""

    @property
    def reconstructed(self) -> Reconstructed | None:
        """What came back of real pictures, where any were inverted."""
        base, smooth = self.base.reconstructed, self.smooth.reconstructed
        if self.real is None or base is None or smooth is None:
            return None
        return Reconstructed(self.real.pictures, base, smooth)


def evaluations(config: RunConfig) -> str:
    """Folder of all evaluations of a storage root."""
    return config.stage_dir("evaluate").rpartition("/")[0]


def measure(comparison: Comparison) -> Found:
    """Sample what isn't there yet of both models, and reduce it.

    Raises:
        store.ArtifactError: the ingested pictures are not there.
        ConfigError: LPIPS's file is another one.
    """
    network = perceptual.find()
    real = _real(comparison.config)
    if real is not None:  # of a small data set fewer than were asked for
        painted = replace(comparison.protocol, reconstructions=len(real.captions))
        comparison = replace(comparison, protocol=painted)
    protocol, evaluate = comparison.protocol, comparison.config.evaluate
    models: tuple[Model, ...] = ("base", "smooth")
    folders = {model: comparison.blocks(model) for model in models}
    sampling = Sampling(protocol, folders, evaluate.batch_size, evaluate.reconstruction_batch)
    reference_path = store.join(comparison.folder, "reference.npz")
    with Studio(comparison, real) as studio:
        if not store.exists(reference_path):
            _save(reference_path, features=_reference_features(comparison.config, studio.pool()))
        prompts = sampling.run(studio.pool, evaluate.until_ci)
    return Found(
        protocol.stopped(prompts, evaluate.until_ci),
        sampling.measurement("base", prompts, network),
        sampling.measurement("smooth", prompts, network),
        _load(reference_path)["features"],
        real,
        network,
        sampling.sampled,
    )


class Studio(AbstractContextManager["Studio"]):
    """Sampling actors, from the moment that there is something to sample; gone afterwards.

    A dead one is restarted and its block sampled again.
    """

    def __init__(self, comparison: Comparison, real: Captioned | None) -> None:
        self._comparison = comparison
        self._real = real
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
        asked = self._comparison
        evaluate = asked.config.evaluate
        actor: Any = ray.remote(Painter).options(
            num_cpus=1,
            num_gpus=evaluate.gpus_per_actor,
            max_restarts=ACTOR_RESTARTS,
            max_task_retries=ACTOR_RESTARTS,
        )
        cuda = evaluate.gpus_per_actor > 0
        self._arguments = (asked.subjects, ray.put(asked.protocol), cuda, ray.put(asked.weights), ray.put(self._real))
        return [actor.remote(*self._arguments) for _ in range(evaluate.actors)]


def _real(config: RunConfig) -> Captioned | None:
    """The pictures to paint again."""
    if not config.evaluate.reconstructions:
        return None
    return captioned_pictures(
        config.stage_dir("ingest"), config.evaluate.reconstructions, config.latents.image_size, config.seed
    )


def _reference_features(config: RunConfig, pool: ActorPool) -> npt.NDArray[np.float32]:
    """Features of as many reference pictures as are sampled, at the models' image size."""
    evaluate = config.evaluate
    asked = (evaluate.pictures, config.latents.image_size, config.seed, evaluate.batch_size)
    if evaluate.reference is None:
        batches = reference_pictures(config.stage_dir("ingest"), *asked)
    else:
        batches = folder_pictures(evaluate.reference, *asked)
    return np.concatenate(list(pool.map(lambda actor, batch: actor.features.remote(batch), list(batches))))


def _save(path: str, **arrays: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    store.write_bytes(path, buffer.getvalue())


def _load(path: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(io.BytesIO(store.read_bytes(path)), allow_pickle=False) as arrays:
        return dict(arrays)
