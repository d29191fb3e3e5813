"""How far the pictures of different prompts are from each other: what a collapsed model has lost.

The diversity is the root mean square, over all pairs of prompts and over the frames, of the L2 distance of the two
pictures at the same frame, on the scale of the neighbour distances. As for any squared distances, the pairs need not
be formed: they follow from each prompt's squared distance to the mean picture, so all pairs of any number of prompts
are counted with one interpolation in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STAMP: dict[str, str | int | float] = {
    "pixel_scale": "[0, 1]",
    "diversity": "RMS of L2 over pairs of prompts at the same frame",
    "interval": "jackknife over prompts",
}

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def spreads(strips: Callable[[], Iterable[npt.NDArray[Any]]]) -> FloatArray:
    """Squared L2 distance of each prompt's pictures from the mean picture of their frame, averaged over the frames.

    Args:
        strips: called twice, gives one prompt after the other as (F, H, W, 3), pixels in [0, 1].

    Returns:
        (P,) float64.

    Raises:
        ValueError: no prompt.
    """
    mean: FloatArray | None = None
    count = 0
    for count, strip in enumerate(strips(), start=1):
        mean = strip.astype(np.float64) if mean is None else mean + (strip - mean) / count
    if mean is None:
        raise ValueError("no interpolation to tell the diversity of")
    found = np.empty(count)
    for prompt, strip in enumerate(strips()):
        found[prompt] = np.square(strip - mean).sum() / len(strip)
    return found


def diversity(squared: FloatArray) -> Interval:
    """Diversity of spreads (P,), with its 95 % interval by the jackknife over prompts.

    With S the sum of all spreads, the mean squared distance of two prompts is ``2 S / (P - 1)``, and without prompt i
    it is ``2 (S - P / (P - 1) s_i) / (P - 2)``.

    Raises:
        ValueError: fewer than three prompts.
    """
    count, total = len(squared), squared.sum()
    if count < 3:
        raise ValueError(f"{count} prompts tell no interval of the diversity; raise evaluate.prompts to 3")
    without = np.sqrt(2 / (count - 2) * np.clip(total - count / (count - 1) * squared, 0, None))
    value, error = np.sqrt(2 * total / (count - 1)), np.sqrt((count - 1) * without.var())
    return Interval(float(value), float(max(value - 1.96 * error, 0.0)), float(value + 1.96 * error))
