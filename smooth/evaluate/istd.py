"""ISTD, the interpolation standard deviation of Smooth Diffusion (arXiv 2312.04410, section 4.1).

Per prompt, two noises are interpolated spherically in equal steps; the L2 distances between neighbouring pictures
are taken in pixel space. ISTD is the mean over prompts of the standard deviation of these distances. The paper leaves
open the pixel scale and the kind of deviation. Ours: pixels in [0, 1], L2 over all pixels and channels (a sum, not a
mean, so the value grows with the picture's size), population deviation. ``STAMP`` says so beside each value.

A model that paints one picture for every noise has an ISTD of 0, so it never stands alone: :func:`istd` tells the mean
neighbour distance and the diversity of the samples, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smooth.evaluate.diversity import Interval, diversity, spreads

STAMP: dict[str, str | int | float] = {"pixel_scale": "[0, 1]", "distance": "L2 over all pixels", "std": "population"}
RESAMPLES = 10_000
CHUNK = 500  # resamples held at once

FloatArray = npt.NDArray[np.float64]
Images = npt.NDArray[Any] | torch.Tensor


@dataclass(frozen=True)
class Smoothness:
    """What a generator's interpolations tell, each value with its 95 % interval over the prompts."""

    distances: FloatArray
    """(P, F - 1) between neighbouring frames"""
    istd: Interval
    variation_coefficient: Interval
    """deviation over mean of the distances: free of the pictures' contrast"""
    neighbour_distance: Interval
    """mean of the distances: 0 where the noise changes nothing"""
    diversity: Interval | None
    """of the pictures of different prompts: 0 where the prompt changes nothing; None below three prompts"""

    @property
    def per_prompt(self) -> FloatArray:
        """The (P,) deviations whose mean is ISTD."""
        return deviation(self.distances)


def istd(images: Images, seed: int = 0) -> Smoothness:
    """ISTD of any generator's interpolations, with all that belongs beside it.

    Args:
        images: (P, F, H, W, C) or (P, F, C, H, W) with C of 1 or 3, array or tensor, uint8 in 0..255 or float in
            [0, 1]: for each of P prompts the F >= 3 pictures of equal steps between two noises.
        seed: of the bootstrap.

    Raises:
        ValueError: another shape or dtype, or floats outside [0, 1].
        TypeError: neither array nor tensor.
    """
    pictures = _pictures(images)
    if pictures.shape[1] < 3:
        raise ValueError(f"{pictures.shape[1]} frames have one distance, which deviates from nothing; give 3 or more")
    distances = neighbour_distances(pictures)
    return Smoothness(
        distances=distances,
        istd=bootstrap(deviation(distances), seed),
        variation_coefficient=bootstrap(variation_coefficient(distances), seed),
        neighbour_distance=bootstrap(distances.mean(axis=1), seed),
        diversity=diversity(spreads(lambda: unit_pictures(pictures))) if len(pictures) > 2 else None,
    )


def paired_difference(model: Smoothness, base: Smoothness, seed: int = 0) -> Interval:
    """ISTD of a model minus that of another on the same prompts and noises, with its paired 95 % interval.

    Raises:
        ValueError: different numbers of prompts or frames.
    """
    if model.distances.shape != base.distances.shape:
        raise ValueError(
            f"prompts and steps differ: {model.distances.shape} against {base.distances.shape}; interpolate between "
            "the same noises for both"
        )
    return bootstrap(model.per_prompt - base.per_prompt, seed)


def neighbour_distances(images: Images) -> FloatArray:
    """L2 distances between neighbouring frames.

    Args:
        images: as of :func:`istd`, of F >= 2 frames.

    Returns:
        (P, F - 1) float64, on the [0, 1] pixel scale.

    Raises:
        ValueError: another shape or dtype, or floats outside [0, 1].
    """
    pictures = _pictures(images)
    scale = _scale(pictures)
    distances = np.empty((len(pictures), pictures.shape[1] - 1))
    for prompt, strip in enumerate(pictures):  # one at a time: float64 copies of all would be eight times the pictures
        steps = np.diff(strip.reshape(len(strip), -1).astype(np.float64), axis=0)
        distances[prompt] = np.linalg.norm(steps, axis=1) / scale
    return distances


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


def unit_pictures(images: Images) -> Iterator[npt.NDArray[np.floating]]:
    """The frames of one prompt after the other, checked as in :func:`istd`, with pixels in [0, 1]."""
    pictures = _pictures(images)
    return (strip / _scale(pictures) for strip in pictures)


def _pictures(images: Images) -> npt.NDArray[Any]:
    """Checked, as an array; a tensor on the CPU isn't copied."""
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype == torch.bfloat16 else images).numpy()
    if not isinstance(images, np.ndarray):
        raise TypeError(f"expected an array or a tensor of pictures, got {type(images).__name__}")
    shape = images.shape
    if images.ndim != 5 or not images.size or shape[1] < 2 or not {1, 3} & {shape[2], shape[4]}:
        raise ValueError(f"expected pictures (P, F >= 2, H, W, 3) or (P, F >= 2, 3, H, W), got {shape}")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"expected uint8 or float pictures, got {images.dtype}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("float pictures must lie in [0, 1]; divide by 255, or give uint8")
    return images


def _scale(pictures: npt.NDArray[Any]) -> float:
    return 255.0 if pictures.dtype == np.uint8 else 1.0
