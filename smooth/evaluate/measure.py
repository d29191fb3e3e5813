"""Both models under one protocol: what is sampled of them by Ray actors, and what they are measured against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.util import ActorPool

from smooth import cluster, store
from smooth.config import STAGE_VERSIONS, ConfigError, RunConfig
from smooth.evaluate import networks, perceptual
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.real import Captioned, Encoded, captioned_pictures, folder_pictures, reference_pictures
from smooth.evaluate.reconstruction import Reconstructed
from smooth.evaluate.sampling import Measurement, Sampling
from smooth.evaluate.subjects import Subject
from smooth.evaluate.worker import Features, Model, Painter

ACTOR_RESTARTS = 2


@dataclass(frozen=True)
class Comparison:
    """Two models, and all that they are compared by."""

    config: RunConfig
    """how many actors there are, how much is sampled at once, where the reference pictures and all results lie"""
    protocol: Protocol
    subjects: dict[Model, Subject]

    @property
    def folder(self) -> str:
        """Where pictures under the protocol are kept, each model's by its content: none is painted twice."""
        version = STAGE_VERSIONS["evaluate"]
        return store.join(evaluations(self.config), f"pictures-{version}-{self.protocol.fingerprint}")

    def blocks(self, model: Model) -> str:
        """Folder of a model's finished blocks."""
        identity = self.subjects[model].identity.replace("/", "--")
        return store.join(self.folder, identity, f"blocks-{self.config.evaluate.batch_size}")

    @property
    def references(self) -> list[str]:
        """Files with features of the reference pictures, by each of the protocol's networks."""
        name = f"references-{STAGE_VERSIONS['evaluate']}-{self.protocol.references}"
        folder = store.join(evaluations(self.config), name)
        return [store.join(folder, f"{each.kind}-{each.identity}.npy") for each in self.protocol.networks]


@dataclass(frozen=True)
class Found:
    """What was measured."""

    protocol: Protocol
    """with the prompts that were taken"""
    base: Measurement
    smooth: Measurement
    reference: list[npt.NDArray[np.float32]]
    """(M, D) features of the reference pictures by each of the protocol's networks"""
    real: Captioned | None
    """pictures that were painted again, if any"""
    network: PerceptualNetwork | None
    """LPIPS's, where its file is there"""
    sampled: int
    """pictures that were not there from before"""

    @property
    def networks(self) -> dict[str, str]:
        """What it was measured by: identities by name."""
        found: dict[str, str] = {network.kind: network.identity for network in self.protocol.networks}
        return found if self.network is None else found | {networks.ALEXNET: self.network.sha256}

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
        ConfigError: LPIPS's file is another one, or a reference picture can't be decoded.
    """
    network = perceptual.find()
    real = _real(comparison.config)
    if real is not None:  # of a small data set fewer than were asked for
        painted = replace(comparison.protocol, reconstructions=len(real.captions))
        comparison = replace(comparison, protocol=painted)
    protocol, evaluate = comparison.protocol, comparison.config.evaluate
    models: tuple[Model, ...] = ("base", "smooth")
    folders = {model: comparison.blocks(model) for model in models}
    sampling = Sampling(protocol, folders, evaluate.batch_size, evaluate.reconstruction_batch, network)
    with Studio(comparison, real, network) as studio:
        _measure_references(comparison, studio)
        prompts = sampling.run(studio.pool, evaluate.until_ci)
    return Found(
        protocol.stopped(prompts, evaluate.until_ci),
        sampling.measurement("base", prompts),
        sampling.measurement("smooth", prompts),
        [store.read_array(path) for path in comparison.references],
        real,
        network,
        sampling.sampled,
    )


class Studio(AbstractContextManager["Studio"]):
    """Sampling actors, from the moment that there is something to sample; gone afterwards.

    A dead one is restarted and its block sampled again.
    """

    def __init__(self, comparison: Comparison, real: Captioned | None, network: PerceptualNetwork | None) -> None:
        self._comparison = comparison
        self._real = real
        self._network = network if comparison.protocol.path_lengths else None
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
        contents = [networks.contents(network) for network in asked.protocol.networks]
        held = [ray.put(each) for each in (contents, self._real, self._network)]
        self._arguments = (asked.subjects, ray.put(asked.protocol), cuda, *held)
        return [actor.remote(*self._arguments) for _ in range(evaluate.actors)]


def _real(config: RunConfig) -> Captioned | None:
    """The pictures to paint again."""
    if not config.evaluate.reconstructions:
        return None
    return captioned_pictures(
        config.stage_dir("ingest"), config.evaluate.reconstructions, config.latents.image_size, config.seed
    )


def _measure_references(comparison: Comparison, studio: Studio) -> None:
    """Keep features of as many reference pictures as are sampled, by the networks of which there are none yet."""
    paths = comparison.references
    lacking = [number for number, path in enumerate(paths) if not store.exists(path)]
    if not lacking:
        return
    parts = list(_in_turn(studio.pool(), _references(comparison.config), lacking))
    for number, features in zip(lacking, zip(*parts, strict=True), strict=True):
        store.write_array(paths[number], np.concatenate(features))


def _references(config: RunConfig) -> Iterator[list[Encoded]]:
    """Reference pictures as files, a batch at a time."""
    evaluate = config.evaluate
    asked = (evaluate.pictures, config.seed, evaluate.batch_size)
    if evaluate.reference is None:
        return reference_pictures(config.stage_dir("ingest"), *asked)
    return folder_pictures(evaluate.reference, *asked)


def _in_turn(pool: ActorPool, batches: Iterator[list[Encoded]], numbers: list[int]) -> Iterator[Features]:
    """Features of each batch, in order. Actors decode; one batch more than there are actors is in memory."""
    try:
        for batch in batches:
            if not pool.has_free():
                yield pool.get_next()
            pool.submit(lambda actor, files: actor.references.remote(files, numbers), batch)
        while pool.has_next():
            yield pool.get_next()
    except ConfigError as error:  # an actor's comes with all that Ray has to say about where it was raised
        raise ConfigError(str(getattr(error, "cause", error))) from error
