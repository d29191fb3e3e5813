"""Mean and covariance of features in float64, from parts that were measured apart and are merged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
ROWS = 1024  # of features whose float64 copy is in memory at once


@dataclass(frozen=True)
class Moments:
    """Moments of n feature vectors; those of two sets add up to those of both.

    The sums of x and of x x^T are held as mean and scatter about the mean, and merged as Chan, Golub and LeVeque do:
    the same facts, but ``sum x x^T - n m m^T`` would lose all digits that the mean has more than the spread.
    """

    n: int
    mean: FloatArray
    """(D,)"""
    scatter: FloatArray
    """(D, D) sum of (x - mean)(x - mean)^T"""

    @classmethod
    def of(cls, features: npt.NDArray[np.floating]) -> Moments:
        """Of features (N, D), N >= 1.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or not x.size:
            raise ValueError(f"expected features (N >= 1, D), got {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError("features are not finite; look at the pictures they were made of")
        mean = x.mean(axis=0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets together.

        Raises:
            ValueError: features of different size.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features of different size: {self.mean.size} and {other.mean.size}")
        n = self.n + other.n
        shift = other.mean - self.mean
        return Moments(
            n,
            self.mean + shift * (other.n / n),
            self.scatter + other.scatter + np.outer(shift, shift) * (self.n * other.n / n),
        )

    @classmethod
    def merged(cls, features: npt.NDArray[np.floating]) -> Moments:
        """Of features (N, D), N >= 1, block by block: the same, and no float64 copy of all of them.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        blocks = (cls.of(features[start : start + ROWS]) for start in range(0, max(len(features), 1), ROWS))
        return reduce(add, blocks)

    @property
    def covariance(self) -> FloatArray:
        """(D, D), n - 1 in the denominator.

        Raises:
            ValueError: of a single vector.
        """
        if self.n < 2:
            raise ValueError("the covariance needs two feature vectors; raise evaluate.pictures")
        return self.scatter / (self.n - 1)

    @property
    def singular(self) -> bool:
        """The covariance has not full rank, whatever the features: n vectors span n - 1 directions about their mean."""
        return self.n <= self.mean.size
