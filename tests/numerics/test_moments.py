"""Moments of parts, merged, against those of the whole; and what sums about zero would lose."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest

from smooth.evaluate.frechet import frechet_distance
from smooth.evaluate.moments import Moments


def features(rng: np.random.Generator, n: int, offset: float = 3.0) -> np.ndarray:
    """Correlated, of unequal variances, away from zero: (n, 24) float64."""
    return rng.standard_normal((n, 24)) @ np.random.default_rng(1).standard_normal((24, 24)) + offset


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_merged_parts_give_the_whole(parts: int) -> None:
    """Of unequal sizes, one of a single vector, in any order."""
    rng = np.random.default_rng(parts)
    x = features(rng, 211)
    cuts = sorted({1, *rng.choice(np.arange(2, 211), parts, replace=False)})[: parts - 1]
    pieces = [Moments.of(piece) for piece in np.split(x, cuts)]
    assert len(pieces) == parts
    other = Moments.of(features(rng, 180) * 1.1)
    expected = frechet_distance(Moments.of(x), other)
    for order in (pieces, pieces[::-1]):
        merged = reduce(add, order)
        assert merged.n == 211
        np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=1e-11, atol=1e-12)
        assert frechet_distance(merged, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [1, 30, 211, 1024])
def test_features_in_blocks_are_the_features(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smooth.evaluate.moments.ROWS", rows)
    x = features(np.random.default_rng(0), 211)
    merged = Moments.merged(x)
    assert merged.n == 211
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=1e-11, atol=1e-12)


def test_a_large_offset_costs_no_digits() -> None:
    """Spread 1 about 1e8: moving all vectors changes no covariance; sums of x x^T keep no digit of it."""
    rng = np.random.default_rng(3)
    x = np.round(features(rng, 200, 0.0) * 2**10) / 2**10  # exact after the move, too
    moved = x + 1e8
    merged = reduce(add, [Moments.of(piece) for piece in np.array_split(moved, 7)])
    truth = np.cov(x, rowvar=False)
    np.testing.assert_allclose(merged.covariance, truth, rtol=1e-6, atol=1e-6 * truth.max())
    total, outer = moved.sum(axis=0), moved.T @ moved
    naive = (outer - np.outer(total, total) / len(x)) / (len(x) - 1)
    assert np.abs(naive - truth).max() > 0.1 * truth.max()


def test_what_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="different size: 2 and 3"):
        Moments.of(np.zeros((4, 2))) + Moments.of(np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"expected features \(N >= 1, D\), got \(4,\)"):
        Moments.of(np.zeros(4))
    with pytest.raises(ValueError, match=r"expected features \(N >= 1, D\), got \(0, 4\)"):
        Moments.merged(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="not finite"):
        Moments.of(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="needs two feature vectors"):
        _ = Moments.of(np.zeros((1, 2))).covariance
