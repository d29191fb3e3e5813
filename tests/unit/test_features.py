"""The feature network on real photographs: it tells content apart, and damage raises the distances."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data
from skimage.transform import resize

from smooth.evaluate.features import FeatureNetwork
from smooth.evaluate.frechet import gaussian_distance, kernel_distance
from smooth.evaluate.moments import Moments
from smooth.evaluate.networks import input_size

SIZE = 64


def crops(count: int, seed: int) -> np.ndarray:
    """Random crops of three photographs, (count, 64, 64, 3) uint8."""
    rng = np.random.default_rng(seed)
    photographs = [data.astronaut(), data.coffee(), data.chelsea()]
    found = []
    for index in range(count):
        photograph = photographs[index % 3]
        side = int(rng.integers(150, 250))
        top, left = (int(rng.integers(0, extent - side)) for extent in photograph.shape[:2])
        found.append(resize(photograph[top : top + side, left : left + side], (SIZE, SIZE), anti_aliasing=True))
    return (255 * np.stack(found)).astype(np.uint8)


def frechet(features: np.ndarray, reference: np.ndarray) -> float:
    """Of 36 pictures, which is biased and told so elsewhere."""
    a, b = Moments.of(features), Moments.of(reference)
    return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return FeatureNetwork(SIZE)


def test_shape_dtype_and_independence_of_the_batch(network: FeatureNetwork) -> None:
    pictures = crops(3, 0)
    features = network(pictures)
    assert features.shape == (3, 1280)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[1:2], network(pictures[1:2]), atol=1e-4)


@pytest.mark.parametrize(("image_size", "expected"), [(32, 96), (64, 96), (100, 96), (128, 128), (512, 224)])
def test_input_size_follows_the_pictures(image_size: int, expected: int) -> None:
    assert input_size(image_size) == expected


def test_same_photograph_is_nearer_than_another(network: FeatureNetwork) -> None:
    features = network(crops(24, 1))
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    same = np.equal.outer(np.arange(24) % 3, np.arange(24) % 3)
    assert distance[same & ~np.eye(24, dtype=bool)].mean() < 0.9 * distance[~same].mean()


def test_noise_raises_both_distances(network: FeatureNetwork) -> None:
    reference, clean = network(crops(36, 2)), crops(36, 3)
    noisy = clean + np.random.default_rng(0).normal(0, 40, clean.shape)
    damaged = network(np.clip(noisy, 0, 255).astype(np.uint8))
    untouched = network(clean)
    assert kernel_distance(damaged, reference).interval[0] > kernel_distance(untouched, reference).interval[1]
    assert frechet(damaged, reference) > 1.5 * frechet(untouched, reference)


def test_refuses_floats_and_channels_first(network: FeatureNetwork) -> None:
    with pytest.raises(ValueError, match="uint8"):
        network(np.zeros((1, 64, 64, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8"):
        network(np.zeros((1, 3, 64, 64), np.uint8))
