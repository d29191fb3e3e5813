"""ISTD, the interpolation standard deviation of Smooth Diffusion (arXiv 2312.04410, section 4.1).

Per prompt, two noises are interpolated spherically in equal steps; the L2 distances between neighbouring pictures
are taken in pixel space. ISTD is the mean over prompts of the standard deviation of these distances. The paper leaves
open the pixel scale and the kind of deviation. Ours: pixels in [0, 1], L2 over all pixels and channels (a sum, not a
mean, so the value grows with the picture's size), population deviation. ``STAMP`` says so beside each value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STAMP: dict[str, str | int | float] = {"pixel_scale": "[0, 1]", "distance": "L2 over all pixels", "std": "population"}
RESAMPLES = 10_000
CHUNK = 500  # resamples held at once

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def neighbour_distances(pictures: npt.NDArray[Any]) -> FloatArray:
    """L2 distances between neighbouring frames.

    Args:
        pictures: (P, F, H, W, 3), uint8 in 0..255 or float in [0, 1].

    Returns:
        (P, F - 1) float64, on the [0, 1] pixel scale.

    Raises:
        ValueError: another shape or dtype, or floats outside [0, 1].
    """
    if pictures.ndim != 5 or pictures.shape[1] < 2:
        raise ValueError(f"expected pictures (P, F >= 2, H, W, 3), got {pictures.shape}")
    if pictures.dtype == np.uint8:
        scale = 255.0
    elif np.issubdtype(pictures.dtype, np.floating):
        scale = 1.0
        if pictures.size and not (pictures.min() >= 0 and pictures.max() <= 1):
            raise ValueError("float pictures must lie in [0, 1]; divide by 255, or give uint8")
    else:
        raise ValueError(f"expected uint8 or float pictures, got {pictures.dtype}")
    prompts, frames = pictures.shape[:2]
    flat = pictures.reshape(prompts, frames, -1)
    distances = np.empty((prompts, frames - 1))
    for index in range(frames - 1):  # one pair at a time: float64 copies of all would be eight times the pictures
        step = flat[:, index + 1].astype(np.float64) - flat[:, index].astype(np.float64)
        distances[:, index] = np.linalg.norm(step, axis=1) / scale
    return distances


def istd(pictures: npt.NDArray[Any]) -> FloatArray:
    """Standard deviation of the neighbour distances of each prompt, (P,) float64; ISTD is its mean."""
    return deviation(neighbour_distances(pictures))


def deviation(distances: FloatArray) -> FloatArray:
    """Population standard deviation of each prompt's distances: (P, F - 1) to (P,)."""
    return np.asarray(distances.std(axis=1))


def variation_coefficient(distances: FloatArray) -> FloatArray:
    """Deviation over mean of each prompt's distances, (P,): ISTD free of the pictures' contrast. 0 for no change."""
    mean = distances.mean(axis=1)
    ratio: FloatArray = np.divide(deviation(distances), mean, out=np.zeros_like(mean), where=mean > 0)
    return ratio


def bootstrap(values: FloatArray, seed: int, statistic: Callable[..., FloatArray] = np.mean) -> Interval:
    """Value of a statistic and its 95 % percentile interval over prompts, which are drawn again 10,000 times.

    Args:
        values: (P,) one value a prompt; differences of two models' values give the paired interval.
        seed: of the resampling.
        statistic: called as ``statistic(array, axis=...)``.
    """
    if values.ndim != 1 or not values.size:
        raise ValueError(f"expected one value a prompt, got shape {values.shape}")
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = values[rng.integers(values.size, size=(CHUNK, values.size))]
        parts.append(np.asarray(statistic(drawn, axis=1)))
    low, high = np.quantile(np.concatenate(parts), [0.025, 0.975])
    return Interval(float(statistic(values, axis=0)), float(low), float(high))
