"""ISTD while it is sampled: an interpolation counts once all its frames are there, in whatever order they come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from smooth.evaluate import istd
from smooth.evaluate.diversity import Interval


class Running:
    """The neighbour distances of one model's interpolations, as far as they are known."""

    def __init__(self, frames: int, seed: int) -> None:
        """``frames`` of an interpolation; ``seed`` of the bootstrap."""
        self._frames = frames
        self._seed = seed
        self._waiting: dict[int, dict[int, npt.NDArray[np.uint8]]] = {}
        self._distances: dict[int, npt.NDArray[np.float64]] = {}

    def add(self, start: int, pictures: npt.NDArray[np.uint8]) -> None:
        """Take pictures (B, H, W, 3), the first of which is frame ``start``, counted prompt by prompt."""
        for index, picture in enumerate(pictures, start):
            prompt, frame = divmod(index, self._frames)
            strip = self._waiting.setdefault(prompt, {})
            strip[frame] = picture
            if len(strip) == self._frames:
                whole = np.stack([strip[frame] for frame in range(self._frames)])
                self._distances[prompt] = istd.neighbour_distances(whole[None])[0]
                del self._waiting[prompt]

    def distances(self, prompts: int) -> npt.NDArray[np.float64]:
        """(P, F - 1) of the first ``prompts``, all of which must be there."""
        return np.stack([self._distances[prompt] for prompt in range(prompts)])

    def estimate(self) -> Interval | None:
        """ISTD of what is there by now; None before the first interpolation."""
        if not self._distances:
            return None
        return istd.bootstrap(istd.deviation(np.stack(list(self._distances.values()))), self._seed)

    def is_within(self, share: float, prompts: int) -> bool:
        """Whether half the interval over the first ``prompts`` is at most ``share`` of their ISTD.

        It goes by the first ones, whichever else are there, so that the answer doesn't depend on who was faster.
        """
        found = istd.bootstrap(istd.deviation(self.distances(prompts)), self._seed)
        return found.high - found.low <= 2 * share * found.value
