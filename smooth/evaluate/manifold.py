"""Fidelity and variety apart: precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

A set of features stands for its manifold by balls: about each vector one that reaches to its k-th nearest neighbour in
the same set. With S samples x, R references y, and B(y) the ball of y among the references:

    precision   share of samples in any B(y)              recall     share of references in any B(x)
    density     mean over samples of #{y: x in B(y)} / k  coverage   share of references y with a sample in B(y)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smooth.evaluate.moments import FloatArray

PRECISION_K = 3  # as Kynkäänniemi et al. use it
DENSITY_K = 5  # as Naeem et al. use it
RIM = 1e-9  # relative: on the rim is inside, whatever the last digits of the two ways to a distance
CHUNK = 1024  # vectors whose distances to all others are held at once


@dataclass(frozen=True)
class Manifold:
    """What each vector contributes; a metric is the mean of its array."""

    precision: FloatArray
    """(S,) 0 or 1 a sample"""
    recall: FloatArray
    """(R,) 0 or 1 a reference"""
    density: FloatArray
    """(S,) balls about references that hold the sample, over k; may be above 1"""
    coverage: FloatArray
    """(R,) 0 or 1 a reference"""


def manifold(
    samples: npt.NDArray[np.floating],
    references: npt.NDArray[np.floating],
    *,
    precision_k: int = PRECISION_K,
    density_k: int = DENSITY_K,
) -> Manifold:
    """Compare features (S, D) with those of references (R, D), in float64.

    A vector on a ball's rim is inside. Distances are held for ``CHUNK`` vectors at a time.

    Raises:
        ValueError: sets of no more than k vectors, or features of different size.
    """
    x, y = _checked(samples, precision_k, density_k), _checked(references, precision_k, density_k)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of different size: {x.shape[1]} and {y.shape[1]}")
    origin = y.mean(axis=0)  # near the features: the expanded square below loses fewer digits
    x, y = x - origin, y - origin
    (around_x,) = _radii(x, precision_k)
    around_y, around_y_wide = _radii(y, precision_k, density_k)
    precision, density = np.empty(len(x)), np.empty(len(x))
    recall, coverage = np.zeros(len(y), dtype=bool), np.zeros(len(y), dtype=bool)
    for rows, squared in _squared_distances(x, y):
        precision[rows] = (squared <= around_y).any(axis=1)
        within = squared <= around_y_wide
        density[rows] = within.sum(axis=1) / density_k
        coverage |= within.any(axis=0)
        recall |= (squared <= around_x[rows, None]).any(axis=0)
    return Manifold(precision, recall.astype(np.float64), density, coverage.astype(np.float64))


def _radii(x: FloatArray, *ks: int) -> list[FloatArray]:
    """Squared distance (N,) of each vector to its k-th nearest other one, for each k."""
    found = [np.empty(len(x)) for _ in ks]
    for rows, squared in _squared_distances(x, x):
        squared[np.arange(len(squared)), np.arange(len(x))[rows]] = -1.0  # itself comes first, whatever its twins
        squared.partition(ks, axis=1)
        for radii, k in zip(found, ks, strict=True):
            radii[rows] = squared[:, k] * (1 + RIM)
    return found


def _squared_distances(x: FloatArray, y: FloatArray) -> Iterator[tuple[slice, FloatArray]]:
    """Rows of the squared distances (N, M), by the expanded square; what is below its rounding is 0, as twins are."""
    length_x, length_y = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, min(start + CHUNK, len(x)))
        squared = -2 * x[rows] @ y.T
        lengths = length_x[rows, None] + length_y
        squared += lengths
        lengths *= 1e-13
        squared[squared < lengths] = 0.0
        yield rows, squared


def _checked(features: npt.NDArray[np.floating], *ks: int) -> FloatArray:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) <= max(ks):
        raise ValueError(f"expected features (N > {max(ks)}, D), got {x.shape}; raise evaluate.pictures")
    return x
