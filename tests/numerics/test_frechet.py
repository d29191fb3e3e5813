"""Fréchet and kernel distance against closed forms, brute force and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from smooth.evaluate.frechet import frechet_distance, kernel_distance, moments


def spd(rng: np.random.Generator, size: int) -> np.ndarray:
    root = rng.standard_normal((size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


def test_frechet_of_commuting_gaussians_is_the_closed_form() -> None:
    """For diagonal covariances it is |m - n|^2 + sum (sqrt a - sqrt b)^2."""
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    m, n = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    expected = 5.0 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(m, np.diag(a), n, np.diag(b)) == pytest.approx(expected, rel=1e-12)


def test_frechet_agrees_with_scipys_matrix_root() -> None:
    rng = np.random.default_rng(0)
    a, b, m, n = spd(rng, 12), spd(rng, 12), rng.standard_normal(12), rng.standard_normal(12)
    expected = (m - n) @ (m - n) + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet_distance(m, a, n, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(n, b, m, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(m, a, m, a) == pytest.approx(0, abs=1e-9)


def test_frechet_survives_fewer_samples_than_dimensions() -> None:
    features = np.random.default_rng(0).standard_normal((20, 50)).astype(np.float32)
    assert frechet_distance(*moments(features), *moments(features)) == pytest.approx(0, abs=1e-6)
    shifted = frechet_distance(*moments(features), *moments(features + np.float32(1)))
    assert shifted == pytest.approx(50, rel=1e-5)


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
    assert frechet_distance(*moments(x), *moments(y)) == pytest.approx(float(fid), rel=1e-6)


def test_kernel_interval_covers_zero_for_equal_distributions() -> None:
    """Unbiased: over 200 draws of equal distributions the mean is 0 and 95 % intervals hold it about that often."""
    rng = np.random.default_rng(5)
    found = [kernel_distance(rng.standard_normal((40, 6)), rng.standard_normal((40, 6))) for _ in range(200)]
    values = np.array([distance.value for distance in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(200)
    held = np.mean([distance.interval[0] <= 0 <= distance.interval[1] for distance in found])
    assert 0.9 <= held <= 1.0


@pytest.mark.parametrize("shape", [(2, 5), (10,)])
def test_too_few_samples_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"raise evaluate\.pictures"):
        kernel_distance(np.zeros(shape), np.zeros((5, 5)))
