"""Precision, recall, density and coverage against loops over the definitions, and where their values are known."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from smooth.evaluate import manifold as module
from smooth.evaluate.manifold import manifold


def loops(samples: np.ndarray, references: np.ndarray, k: int) -> tuple[list[float], ...]:
    """The four by their definitions, one k for all: each sample's or reference's contribution."""

    def radius(index: int, vectors: np.ndarray) -> float:
        others = [math.dist(vectors[index], other) for place, other in enumerate(vectors) if place != index]
        return sorted(others)[k - 1] * (1 + 1e-12)

    around_x = [radius(index, samples) for index in range(len(samples))]
    around_y = [radius(index, references) for index in range(len(references))]
    inside = [[math.dist(x, y) <= around for y, around in zip(references, around_y, strict=True)] for x in samples]
    recall = [any(math.dist(x, y) <= around for x, around in zip(samples, around_x, strict=True)) for y in references]
    return (
        [float(any(row)) for row in inside],
        [float(found) for found in recall],
        [sum(row) / k for row in inside],
        [float(any(column)) for column in zip(*inside, strict=True)],
    )


def sets(seed: int, offset: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Float32 sets that overlap in part, the samples with twins and with some of the references among them."""
    rng = np.random.default_rng(seed)
    references = rng.standard_normal((70, 6)) + offset
    samples = rng.standard_normal((60, 6)) * 0.7 + offset + 0.8
    samples[:5] = samples[5:10]
    samples[20:30] = references[:10]
    return samples.astype(np.float32), references.astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [5.0, 1000.0])
def test_it_agrees_with_loops_in_any_number_of_chunks(k: int, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, references = sets(k, offset)
    expected = loops(samples.astype(np.float64), references.astype(np.float64), k)
    assert all(np.mean(values) > 0 for values in expected)
    for chunk in (1024, 13):
        monkeypatch.setattr(module, "CHUNK", chunk)
        found = manifold(samples, references, precision_k=k, density_k=k)
        for values, wanted in zip(
            (found.precision, found.recall, found.density, found.coverage), expected, strict=True
        ):
            np.testing.assert_array_equal(values, wanted)


def test_chunks_are_all_that_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, references = np.random.default_rng(5).standard_normal((2, 1500, 4))
    whole = manifold(samples, references)
    monkeypatch.setattr(module, "CHUNK", 64)
    tracemalloc.start()
    found = manifold(samples, references)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 64 * 1500 * 8  # a matrix of 1500 by 1500 has five times that
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(found, name), values)


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    import torch
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    samples, references = (features.astype(np.float64) for features in sets(7))
    found = manifold(samples, references)
    theirs = calculate_precision_recall_full(torch.tensor(samples), torch.tensor(references), neighborhood=3)
    assert (found.precision.mean(), found.recall.mean()) == pytest.approx(theirs, abs=1e-6)


def test_each_names_its_own_failure() -> None:
    """Few modes cost recall and coverage; stray samples cost precision and density; an outlier buys no density."""
    rng = np.random.default_rng(3)
    references = np.concatenate([rng.standard_normal((100, 4)), rng.standard_normal((100, 4)) + 50])
    one_mode = manifold(rng.standard_normal((200, 4)), references)
    assert one_mode.precision.mean() > 0.9
    assert one_mode.recall.mean() < 0.55
    assert one_mode.coverage.mean() < 0.55
    strays = manifold(references + rng.choice([0.0, 500.0], (200, 1)), references)
    assert strays.precision.mean() == pytest.approx(0.5, abs=0.1)
    assert strays.density.mean() == pytest.approx(strays.precision.mean() * 1.2, rel=0.1)  # itself, and k neighbours
    same = manifold(references, references)
    assert (same.precision.mean(), same.recall.mean(), same.coverage.mean()) == (1, 1, 1)


def test_density_of_equal_distributions_is_one_and_coverage_its_closed_form() -> None:
    """Naeem et al.: E[density] = 1, and E[coverage] = 1 - (M - 1) ... (M - k) / ((2 M - 1) ... (2 M - k)) for N = M."""
    rng = np.random.default_rng(4)
    found = [manifold(*rng.standard_normal((2, 200, 3))) for _ in range(20)]
    ratios = [(200 - step) / (400 - step) for step in range(1, 6)]
    assert np.mean([each.density.mean() for each in found]) == pytest.approx(1, abs=0.02)
    assert np.mean([each.coverage.mean() for each in found]) == pytest.approx(1 - math.prod(ratios), abs=0.01)


def test_too_few_and_unequal_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"N > 5, D\), got \(5, 2\); raise evaluate\.pictures"):
        manifold(np.zeros((5, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="different size: 2 and 3"):
        manifold(np.zeros((9, 2)), np.zeros((9, 3)))
