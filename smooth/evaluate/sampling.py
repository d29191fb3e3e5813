"""Sampling of both models, block by block on as many actors as there are; a finished block is never sampled again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from smooth import progress, store
from smooth.evaluate import diversity, paths
from smooth.evaluate.perceptual import PerceptualNetwork, perceptual_distances
from smooth.evaluate.protocol import Protocol as Sampled
from smooth.evaluate.running import Running
from smooth.evaluate.worker import Block, Model, blocks

Task = tuple[Model, Block, tuple[int, ...], bool]
"""a block, the numbers of the networks (or distances) that are to judge it, and whether its pictures are there"""
LOOK_EVERY = 20  # prompts between two looks at whether the interval is tight enough


class Pool(Protocol):
    """What is needed of a pool of painters; Ray's ``ActorPool`` has it."""

    def map_unordered(self, call: Callable[[Any, Any], Any], values: list[Any]) -> Iterator[Any]:
        """Results in the order in which they are finished."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model."""

    distances: npt.NDArray[np.float64]
    """(P, F - 1) between neighbouring frames"""
    spreads: npt.NDArray[np.float64]
    """(P,) squared distances of each prompt's frames from the mean ones"""
    features: list[npt.NDArray[np.float32]]
    """(N, D) by each of the protocol's networks"""
    strips: npt.NDArray[np.uint8]
    """(S, F, H, W, 3) the first S interpolations"""
    reconstructed: npt.NDArray[np.uint8] | None
    """(R, 3, H, W, 3) real pictures painted again in each way, where any were"""
    perceptual: npt.NDArray[np.float64] | None
    """(P, F - 1) LPIPS between neighbouring frames, where its network is there"""
    path_lengths: list[npt.NDArray[np.float64]]
    """(K,) of the protocol's paths by each distance"""


class Sampling:
    """One evaluation's pictures: what is there of each model, and what is still to be sampled."""

    def __init__(
        self,
        protocol: Sampled,
        folders: dict[Model, str],
        batch_size: int,
        reconstruction_batch: int = 1,
        network: PerceptualNetwork | None = None,
    ) -> None:
        """``folders`` keep each model's finished blocks of ``batch_size`` pictures, of reconstructions of fewer.

        ``network`` is LPIPS's, where its file is there.
        """
        self._protocol = protocol
        self._folders = folders
        self._network = network
        self._paths = blocks("paths", protocol.path_lengths, max(batch_size // 2, 1))  # two pictures each
        self._frames = blocks("frames", len(protocol.prompts) * protocol.frames, batch_size)
        self._pictures = blocks("pictures", len(protocol.picture_prompts), batch_size)
        self._reconstructions = blocks("reconstructions", protocol.reconstructions, reconstruction_batch)
        self._running: dict[Model, Running] = {model: Running(protocol.frames, protocol.seed) for model in folders}
        self._there: set[tuple[Model, str]] = set()
        self._done = 0
        self.sampled = 0  # pictures, without those that were there before

    def run(self, pool: Callable[[], Pool], until_ci: float | None) -> int:
        """Sample what is missing; return the number of prompts whose interpolations count.

        Args:
            pool: called where there is something to sample.
            until_ci: stop once half of each model's interval is at most this share of its ISTD; None takes all.
        """
        self._there = {(model, name) for model, folder in self._folders.items() for name in store.names(folder)}
        prompts = len(self._protocol.prompts)
        whole = [*self._pictures, *self._paths, *self._reconstructions]
        todo = [(model, block) for model in self._folders for block in whole]
        begin = 0
        for end in [prompts] if until_ci is None else [*range(LOOK_EVERY, prompts, LOOK_EVERY), prompts]:
            first, last = begin * self._protocol.frames, end * self._protocol.frames
            todo += [(model, block) for model in self._folders for block in self._frames if first <= block.start < last]
            self._sample(pool, todo)
            if until_ci is not None and all(running.is_within(until_ci, end) for running in self._running.values()):
                break
            begin, todo = end, []
        self._report(self._done)
        return end

    def measurement(self, model: Model, prompts: int) -> Measurement:
        """What the blocks of a model reduce to, one interpolation in memory at a time."""
        network = self._network

        def strips() -> Iterator[npt.NDArray[np.uint8]]:
            return self._strips(model, prompts)

        painted = [self._read(model, block) for block in self._reconstructions]
        return Measurement(
            distances=self._running[model].distances(prompts),
            spreads=diversity.spreads(lambda: (strip / 255.0 for strip in strips())),
            features=self._judged(model, self._pictures),
            strips=np.stack([strip for strip, _ in zip(strips(), range(self._protocol.strips), strict=False)]),
            reconstructed=np.concatenate(painted) if painted else None,
            perceptual=None if network is None else np.concatenate([_lpips(strip, network) for strip in strips()]),
            path_lengths=self._judged(model, self._paths),
        )

    def _judged(self, model: Model, judged: list[Block]) -> list[npt.NDArray[Any]]:
        """What was made of all blocks of a kind, by each network or distance."""
        parts = [[self._load(model, name) for name in self._names(block)] for block in judged]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _sample(self, pool: Callable[[], Pool], todo: list[tuple[Model, Block]]) -> None:
        missing: list[Task] = []
        for model, block in todo:
            kept, networks = (model, block.name) in self._there, self._lacking(model, block)
            if not networks and (kept or block.kind == "paths"):
                self._take(model, block, self._read(model, block) if block.kind == "frames" else None)
            else:
                missing.append((model, block, networks, kept))
        if not missing:
            return

        def ask(actor: Any, task: Task) -> Any:  # called when the actor is free: kept pictures don't pile up
            model, block, networks, kept = task
            return actor.result.remote(model, block, networks, self._read(model, block) if kept else None)

        asked = {(model, block): networks for model, block, networks, _ in missing}
        total = sum(block.pictures for block in [*self._frames, *self._pictures, *self._paths, *self._reconstructions])
        for model, block, pictures, made in pool().map_unordered(ask, missing):
            names = self._names(block)
            for number, found in zip(asked[model, block], made, strict=True):
                self._keep(model, names[number], found)
            if pictures is not None:
                self._keep(model, block.name, pictures)
            self.sampled += block.pictures if pictures is not None or block.kind == "paths" else 0
            self._take(model, block, pictures)
            self._report(len(self._folders) * total)

    def _lacking(self, model: Model, block: Block) -> tuple[int, ...]:
        """Numbers of the networks or distances by which a block's features or lengths are not there."""
        return tuple(number for number, name in enumerate(self._names(block)) if (model, name) not in self._there)

    def _names(self, block: Block) -> list[str]:
        """Files with what is made of a block besides its pictures, by each network or distance."""
        folders: list[str] = []
        if block.kind == "pictures":
            folders = [f"{network.kind}-{network.identity}" for network in self._protocol.networks]
        elif block.kind == "paths":
            folders = paths.kept_under(self._network)
        return [f"{folder}/{block.name}" for folder in folders]

    def _take(self, model: Model, block: Block, pictures: npt.NDArray[np.uint8] | None) -> None:
        self._done += block.pictures
        if block.kind == "frames" and pictures is not None:
            self._running[model].add(block.start, pictures)

    def _report(self, total: int) -> None:
        facts = {}
        for model, running in self._running.items():
            if (found := running.estimate()) is not None:
                facts[f"ISTD {model}"] = f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]"
        progress.report("evaluate", self._done, total, "pictures", **facts)

    def _strips(self, model: Model, prompts: int) -> Iterator[npt.NDArray[np.uint8]]:
        """The first interpolations (F, H, W, 3) in order; blocks may cut across."""
        frames = self._protocol.frames
        waiting: list[npt.NDArray[np.uint8]] = []
        for block in self._frames:
            if block.start >= prompts * frames:
                return
            waiting += list(self._read(model, block)[: prompts * frames - block.start])
            while len(waiting) >= frames:
                yield np.stack(waiting[:frames])
                del waiting[:frames]

    def _keep(self, model: Model, name: str, array: npt.NDArray[Any]) -> None:
        store.write_array(store.join(self._folders[model], name), array)

    def _read(self, model: Model, block: Block) -> npt.NDArray[np.uint8]:
        return self._load(model, block.name)

    def _load(self, model: Model, name: str) -> npt.NDArray[Any]:
        return store.read_array(store.join(self._folders[model], name))


def _lpips(strip: npt.NDArray[np.uint8], network: PerceptualNetwork) -> npt.NDArray[np.float64]:
    return perceptual_distances(strip[None], network)
