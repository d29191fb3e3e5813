"""Distances of two sets of features: Fréchet (of their Gaussian fits) and kernel (KID), in float64.

Which network made the features decides what a value means, so neither is called FID or KID alone: see ``features``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smooth.evaluate.moments import FloatArray, Moments

ROWS = 1024  # of a kernel matrix that are held at once


class BiasWarning(UserWarning):
    """A Fréchet distance of too few samples: biased upwards, whatever the models."""


@dataclass(frozen=True)
class KernelDistance:
    """Unbiased squared MMD, with its standard error by the jackknife over both sets."""

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, normal approximation."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error


def bias(a: Moments, b: Moments) -> str:
    """Why the Fréchet distance of these two can't be trusted; empty where it can."""
    if not (a.singular or b.singular):
        return ""
    return (
        f"biased upwards: the covariance of {min(a.n, b.n)} pictures is singular in {a.mean.size} dimensions; "
        "compare KID, or raise evaluate.pictures"
    )


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of the Gaussian fits of two sets of features.

    Warns:
        BiasWarning: a set of no more samples than dimensions.

    Raises:
        ValueError: features of different size, or a set of one.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of different size: {a.mean.size} and {b.mean.size}")
    if reason := bias(a, b):
        warnings.warn(f"a Fréchet distance is {reason}", BiasWarning, stacklevel=2)
    return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)


def gaussian_distance(
    mean_a: FloatArray, covariance_a: FloatArray, mean_b: FloatArray, covariance_b: FloatArray
) -> float:
    """Squared Fréchet distance of two Gaussians, ``|m - n|^2 + tr(A + B - 2 (A B)^(1/2))``.

    The trace of the root is taken from the eigenvalues of ``A^(1/2) B A^(1/2)``, which is symmetric: no complex
    residue, and no failure on the singular covariances that fewer samples than dimensions give.
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = root @ covariance_b @ root
    trace_of_root = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None)).sum()
    difference = mean_a - mean_b
    squared = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace_of_root
    return float(max(squared, 0.0))


def kernel_distance(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> KernelDistance:
    """KID (arXiv 1801.01401): unbiased squared MMD of features (N, D), (M, D) with kernel ``(x.y / D + 1)^3``.

    Uses all pairs instead of random subsets, so it needs no seed; the interval comes from leaving out one sample at a
    time, for which the row sums of the three kernel matrices suffice.

    Raises:
        ValueError: fewer than three samples in a set, or different feature sizes.
    """
    x, y = _checked(a), _checked(b)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of different size: {x.shape[1]} and {y.shape[1]}")
    n, m = len(x), len(y)
    rows_x, _ = _kernel_sums(x, x)
    rows_y, _ = _kernel_sums(y, y)
    rows_x, rows_y = rows_x - _kernel_of_itself(x), rows_y - _kernel_of_itself(y)
    rows_xy, columns_xy = _kernel_sums(x, y)
    within_x, within_y, across = rows_x.sum(), rows_y.sum(), rows_xy.sum()
    value = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)
    without_x = (
        (within_x - 2 * rows_x) / ((n - 1) * (n - 2))
        + within_y / (m * (m - 1))
        - 2 * (across - rows_xy) / ((n - 1) * m)
    )
    without_y = (
        within_x / (n * (n - 1))
        + (within_y - 2 * rows_y) / ((m - 1) * (m - 2))
        - 2 * (across - columns_xy) / (n * (m - 1))
    )
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return KernelDistance(float(value), float(np.sqrt(variance)))


def _kernel_sums(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Sums of the kernel matrix (N, M) by rows, (N,), and by columns, (M,); ``ROWS`` of it are in memory."""
    rows, columns = np.empty(len(x)), np.zeros(len(y))
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS] @ y.T
        _cube(part, x.shape[1])
        rows[start : start + ROWS] = part.sum(axis=1)
        columns += part.sum(axis=0)
    return rows, columns


def _kernel_of_itself(x: FloatArray) -> FloatArray:
    """The kernel matrix's diagonal, (N,)."""
    products: FloatArray = np.einsum("nd,nd->n", x, x)
    _cube(products, x.shape[1])
    return products


def _cube(products: FloatArray, dimensions: int) -> None:
    """From inner products to the kernel, in place."""
    products /= dimensions
    products += 1
    products **= 3


def _checked(features: npt.NDArray[np.floating]) -> FloatArray:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 3:
        raise ValueError(f"expected features (N >= 3, D), got {x.shape}; raise evaluate.pictures")
    return x
