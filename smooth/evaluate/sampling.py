"""Sampling of both models, block by block on as many actors as there are; a finished block is never sampled again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from smooth import progress, store
from smooth.evaluate import diversity
from smooth.evaluate.perceptual import PerceptualNetwork, perceptual_distances
from smooth.evaluate.protocol import Protocol as Sampled
from smooth.evaluate.running import Running
from smooth.evaluate.worker import Block, Model, blocks

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
    features: npt.NDArray[np.float32]
    """(N, D) as the painters give them"""
    strips: npt.NDArray[np.uint8]
    """(S, F, H, W, 3) the first S interpolations"""
    reconstructed: npt.NDArray[np.uint8] | None
    """(R, 3, H, W, 3) real pictures painted again in each way, where any were"""
    perceptual: npt.NDArray[np.float64] | None
    """(P, F - 1) LPIPS between neighbouring frames, where its network is there"""


class Sampling:
    """One evaluation's pictures: what is there of each model, and what is still to be sampled."""

    def __init__(
        self, protocol: Sampled, folders: dict[Model, str], batch_size: int, reconstruction_batch: int = 1
    ) -> None:
        """``folders`` keep each model's finished blocks of ``batch_size`` pictures, of reconstructions of fewer."""
        self._protocol = protocol
        self._folders = folders
        self._frames = blocks("frames", len(protocol.prompts) * protocol.frames, batch_size)
        self._pictures = blocks("pictures", len(protocol.picture_prompts), batch_size)
        self._reconstructions = blocks("reconstructions", protocol.reconstructions, reconstruction_batch)
        self._running: dict[Model, Running] = {model: Running(protocol.frames, protocol.seed) for model in folders}
        self._done = 0
        self.sampled = 0  # pictures, without those that were there before

    def run(self, pool: Callable[[], Pool], until_ci: float | None) -> int:
        """Sample what is missing; return the number of prompts whose interpolations count.

        Args:
            pool: called where there is something to sample.
            until_ci: stop once half of each model's interval is at most this share of its ISTD; None takes all.
        """
        prompts = len(self._protocol.prompts)
        todo = [(model, block) for model in self._folders for block in [*self._pictures, *self._reconstructions]]
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

    def measurement(self, model: Model, prompts: int, network: PerceptualNetwork | None = None) -> Measurement:
        """What the blocks of a model reduce to, one interpolation in memory at a time; ``network`` is LPIPS's."""

        def strips() -> Iterator[npt.NDArray[np.uint8]]:
            return self._strips(model, prompts)

        painted = [self._read(model, block) for block in self._reconstructions]
        return Measurement(
            distances=self._running[model].distances(prompts),
            spreads=diversity.spreads(lambda: (strip / 255.0 for strip in strips())),
            features=np.concatenate([self._read(model, block) for block in self._pictures]),
            strips=np.stack([strip for strip, _ in zip(strips(), range(self._protocol.strips), strict=False)]),
            reconstructed=np.concatenate(painted) if painted else None,
            perceptual=None if network is None else np.concatenate([_lpips(strip, network) for strip in strips()]),
        )

    def _sample(self, pool: Callable[[], Pool], todo: list[tuple[Model, Block]]) -> None:
        missing = []
        for model, block in todo:
            if store.exists(self._path(model, block)):
                self._take(model, block, self._read(model, block))
            else:
                missing.append((model, block))
        if not missing:
            return
        tasks = pool().map_unordered(lambda actor, task: actor.result.remote(*task), missing)
        for model, block, result in tasks:
            store.write_bytes(self._path(model, block), _npy(result))
            self._take(model, block, result)
            self.sampled += block.stop - block.start
            each = self._frames[-1].stop + self._pictures[-1].stop + self._protocol.reconstructions
            self._report(len(self._folders) * each)

    def _take(self, model: Model, block: Block, result: npt.NDArray[Any]) -> None:
        self._done += block.stop - block.start
        if block.kind == "frames":
            self._running[model].add(block.start, result)

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

    def _path(self, model: Model, block: Block) -> str:
        return store.join(self._folders[model], block.name)

    def _read(self, model: Model, block: Block) -> npt.NDArray[Any]:
        data = store.read_bytes(self._path(model, block))
        loaded: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        return loaded


def _lpips(strip: npt.NDArray[np.uint8], network: PerceptualNetwork) -> npt.NDArray[np.float64]:
    return perceptual_distances(strip[None], network)


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
