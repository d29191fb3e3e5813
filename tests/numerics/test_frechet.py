"""Fréchet and kernel distance against closed forms, brute force and scipy."""

from __future__ import annotations

import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from smooth.evaluate.frechet import BiasWarning, frechet_distance, gaussian_distance, kernel_distance
from smooth.evaluate.moments import Moments


def spd(rng: np.random.Generator, size: int) -> np.ndarray:
    root = rng.standard_normal((size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


def test_frechet_of_commuting_gaussians_is_the_closed_form() -> None:
    """For diagonal covariances it is |m - n|^2 + sum (sqrt a - sqrt b)^2."""
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    m, n = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    expected = 5.0 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert gaussian_distance(m, np.diag(a), n, np.diag(b)) == pytest.approx(expected, rel=1e-12)


def test_frechet_agrees_with_scipys_matrix_root() -> None:
    rng = np.random.default_rng(0)
    a, b, m, n = spd(rng, 12), spd(rng, 12), rng.standard_normal(12), rng.standard_normal(12)
    expected = (m - n) @ (m - n) + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert gaussian_distance(m, a, n, b) == pytest.approx(expected, rel=1e-9)
    assert gaussian_distance(n, b, m, a) == pytest.approx(expected, rel=1e-9)
    assert gaussian_distance(m, a, m, a) == pytest.approx(0, abs=1e-9)


def test_frechet_of_features_agrees_with_scipy() -> None:
    """Correlated float32 features far from zero, as networks give them; moments and root by numpy's cov and scipy."""
    rng = np.random.default_rng(4)
    mixing = rng.standard_normal((48, 48))
    x = (rng.standard_normal((200, 48)) @ mixing + 30).astype(np.float32)
    y = (rng.standard_normal((300, 48)) @ mixing * 1.2 + 31).astype(np.float32)
    a, b = (np.cov(features.astype(np.float64), rowvar=False) for features in (x, y))
    shift = x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)
    expected = shift @ shift + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_samples_nears_the_distance_of_their_gaussians() -> None:
    rng = np.random.default_rng(6)
    deviation, mean = np.array([1.0, 2.0, 0.5]), np.array([1.0, -1.0, 0.0])
    x, y = rng.standard_normal((2, 40_000, 3))
    expected = mean @ mean + ((deviation - 1) ** 2).sum()
    assert frechet_distance(Moments.of(x), Moments.of(y * deviation + mean)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("n", [20, 50])
def test_fewer_samples_than_dimensions_survive_and_are_warned_of(n: int) -> None:
    features = np.random.default_rng(0).standard_normal((n, 50)).astype(np.float32)
    fit, other = Moments.of(features), Moments.of(features + np.float32(1))
    with pytest.warns(BiasWarning, match=rf"covariance of {n} pictures is singular in 50 dimensions; compare KID"):
        assert frechet_distance(fit, fit) == pytest.approx(0, abs=1e-6)
    with pytest.warns(BiasWarning, match="KID"):
        assert frechet_distance(fit, other) == pytest.approx(50, rel=1e-5)


def test_enough_samples_are_not_warned_of() -> None:
    features = np.random.default_rng(0).standard_normal((51, 50))
    fit = Moments.of(features)
    assert np.linalg.matrix_rank(fit.covariance) == 50
    assert frechet_distance(fit, fit) == pytest.approx(0, abs=1e-9)  # a warning would be an error here


def brute_force_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_and_its_jackknife_agree_with_loops() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((9, 5)), rng.standard_normal((7, 5)) + 0.5
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(brute_force_mmd(x, y), rel=1e-12)
    without_x = np.array([brute_force_mmd(np.delete(x, i, 0), y) for i in range(len(x))])
    without_y = np.array([brute_force_mmd(x, np.delete(y, i, 0)) for i in range(len(y))])
    variance = (len(x) - 1) * without_x.var() + (len(y) - 1) * without_y.var()
    assert found.standard_error == pytest.approx(np.sqrt(variance), rel=1e-9)


def test_both_distances_agree_with_torch_fidelity() -> None:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kernel_mmd

    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((30, 8)), rng.standard_normal((30, 8)) * 1.3
    assert kernel_distance(x, y).value == pytest.approx(float(kernel_mmd(x, y)), rel=1e-9)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(torch.tensor(f)) for f in (x, y)), False)
    (fid,) = theirs.values()
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(float(fid), rel=1e-6)


def test_kernel_interval_covers_zero_for_equal_distributions() -> None:
    """Unbiased: over 200 draws of equal distributions the mean is 0 and 95 % intervals hold it about that often."""
    rng = np.random.default_rng(5)
    found = [kernel_distance(rng.standard_normal((40, 6)), rng.standard_normal((40, 6))) for _ in range(200)]
    values = np.array([distance.value for distance in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(200)
    held = np.mean([distance.interval[0] <= 0 <= distance.interval[1] for distance in found])
    assert 0.9 <= held <= 1.0


def test_kernel_distance_of_all_splits_of_a_set_averages_to_zero() -> None:
    """Unbiased, exactly: over the 252 halves of ten vectors each pair is met within and across equally often."""
    x = np.random.default_rng(7).standard_normal((10, 6)) + 1
    values = [kernel_distance(x[list(half)], np.delete(x, half, axis=0)).value for half in combinations(range(10), 5)]
    assert np.mean(values) == pytest.approx(0, abs=1e-12 * np.std(values))


def test_kernel_distance_of_199_splits_averages_to_zero() -> None:
    """Unbiased, exactly, on a set that is too large for all of its halves.

    Paley's splits of 200 vectors: number ``i`` puts the squares modulo 199, moved by ``i``, and the last vector on one
    side. As the rows of a Hadamard matrix, they meet each pair within 99 times and across 100 times, the ratio of all
    halves, so the mean is 0 but for rounding. Left in, as the biased estimator does, the diagonal would be many
    standard deviations of a split.
    """
    rng = np.random.default_rng(8)
    x = rng.standard_normal((200, 20)) @ rng.standard_normal((20, 20)) + 2
    squares = np.unique(np.arange(1, 199) ** 2 % 199)
    values, diagonals = [], []
    for shift in range(199):
        inside = np.zeros(200, dtype=bool)
        inside[[*(squares + shift) % 199, 199]] = True
        halves = x[inside], x[~inside]
        assert len(halves[0]) == len(halves[1])
        values.append(kernel_distance(*halves).value)
        diagonals.append(sum((((half**2).mean(axis=1) + 1) ** 3).mean() / len(half) for half in halves))
    assert np.mean(values) == pytest.approx(0, abs=1e-12 * np.std(values))
    assert np.mean(diagonals) > 3 * np.std(values)


def test_blocks_of_rows_are_the_whole_matrix_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((1500, 8)), rng.standard_normal((1300, 8)) + 0.3
    whole = kernel_distance(x, y)
    monkeypatch.setattr("smooth.evaluate.frechet.ROWS", 64)
    tracemalloc.start()
    found = kernel_distance(x, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.value == pytest.approx(whole.value, rel=1e-12)
    assert found.standard_error == pytest.approx(whole.standard_error, rel=1e-12)
    assert peak < 5 * 64 * 1500 * 8  # a matrix of 1500 by 1500 has five times that


@pytest.mark.parametrize("shape", [(2, 5), (10,)])
def test_too_few_samples_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"raise evaluate\.pictures"):
        kernel_distance(np.zeros(shape), np.zeros((5, 5)))
