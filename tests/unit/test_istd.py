"""ISTD by hand on pictures whose distances are known, and against loops over every pixel and pair."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from smooth.evaluate import diversity, istd
from smooth.evaluate.metric import Metric, StampError


def strip(levels: list[float], size: int = 4) -> np.ndarray:
    """One interpolation of plain grey pictures, (1, F, size, size, 3)."""
    return np.stack([np.full((size, size, 3), level) for level in levels])[None]


def test_equal_steps_have_no_deviation() -> None:
    pictures = strip([0.0, 0.25, 0.5, 0.75, 1.0])
    assert istd.neighbour_distances(pictures) == pytest.approx(0.25 * np.sqrt(48))
    assert istd.istd(pictures).istd.value == pytest.approx(0.0, abs=1e-12)


def test_known_steps_give_the_population_deviation_in_unit_pixels() -> None:
    """Steps 0.1 and 0.3 on 48 values: distances 0.1 s and 0.3 s with s = sqrt(48), deviation 0.1 s."""
    pictures = strip([0.0, 0.1, 0.4])
    assert istd.istd(pictures).per_prompt == pytest.approx(0.1 * np.sqrt(48))
    assert istd.variation_coefficient(istd.neighbour_distances(pictures)) == pytest.approx(0.5)


def test_bytes_and_floats_agree_and_bytes_do_not_wrap() -> None:
    levels = [200.0, 3.0, 255.0]
    of_bytes = istd.neighbour_distances(strip(levels).astype(np.uint8))
    np.testing.assert_allclose(of_bytes, istd.neighbour_distances(strip(levels) / 255.0))
    assert of_bytes[0, 0] == pytest.approx(197 / 255 * np.sqrt(48))


def loops(pictures: np.ndarray) -> tuple[list[float], float]:
    """Each prompt's deviation and the diversity by the definition: (P, F, H, W, 3) uint8, pixel by pixel."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return math.sqrt(sum(((int(x) - int(y)) / 255) ** 2 for x, y in zip(a.flat, b.flat, strict=True)))

    deviations = []
    for strip in pictures:
        steps = [distance(a, b) for a, b in pairwise(strip)]
        mean = sum(steps) / len(steps)
        deviations.append(math.sqrt(sum((step - mean) ** 2 for step in steps) / len(steps)))
    frames = range(pictures.shape[1])
    apart = [distance(a[frame], b[frame]) ** 2 for a, b in combinations(pictures, 2) for frame in frames]
    return deviations, math.sqrt(sum(apart) / len(apart))


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(9).integers(0, 256, (5, 4, 6, 7, 3), np.uint8)


def test_it_agrees_with_loops_over_pixels(noise: np.ndarray) -> None:
    found = istd.istd(noise)
    deviations, apart = loops(noise)
    assert found.per_prompt == pytest.approx(deviations, rel=1e-9)
    assert found.istd.value == pytest.approx(np.mean(deviations), rel=1e-9)
    assert found.diversity is not None
    assert found.diversity.value == pytest.approx(apart, rel=1e-9)


def test_arrays_and_tensors_of_any_layout_and_dtype_agree(noise: np.ndarray) -> None:
    expected = istd.istd(noise).per_prompt
    channels_first = torch.tensor(noise).permute(0, 1, 4, 2, 3)
    for images, tolerance in (
        (channels_first, 1e-12),
        (noise / 255, 1e-12),
        ((noise / 255).astype(np.float32), 1e-5),
        ((channels_first / 255).requires_grad_(), 1e-5),
        ((channels_first / 255).half(), 2e-2),
        ((channels_first / 255).bfloat16(), 0.1),
    ):
        assert istd.istd(images).per_prompt == pytest.approx(expected, rel=tolerance)


def moving(places: list[float], width: int = 60) -> np.ndarray:
    """A soft bright disc whose centre moves along a line: one interpolation (F, width, width, 3)."""
    y, x = np.mgrid[:width, :width]
    discs = [np.exp(-((x - place) ** 2 + (y - width / 2) ** 2) / 18) for place in places]
    return np.repeat(np.stack(discs)[..., None], 3, axis=3)


def test_constant_speed_scores_zero_and_a_jump_the_closed_form() -> None:
    """One of n equal steps d becomes r d: the deviation of n - 1 times d and once r d is d (r - 1) sqrt(n - 1) / n."""
    steady = istd.istd(moving([20 + 2 * step for step in range(11)])[None])
    assert steady.istd.value == pytest.approx(0, abs=1e-6 * steady.neighbour_distance.value)
    assert steady.neighbour_distance.value > 1

    levels = np.array([0.04 * step + (0.3 if step > 6 else 0) for step in range(11)])
    jumping = istd.istd(strip(list(levels)))
    d, ratio, steps = 0.04 * math.sqrt(48), 0.34 / 0.04, 10
    assert jumping.istd.value == pytest.approx(d * (ratio - 1) * math.sqrt(steps - 1) / steps, rel=1e-9)
    mean = (steps - 1 + ratio) / steps
    coefficient = (ratio - 1) * math.sqrt(steps - 1) / steps / mean
    assert jumping.variation_coefficient.value == pytest.approx(coefficient, rel=1e-9)


def test_a_collapsed_model_does_not_look_smooth(noise: np.ndarray) -> None:
    """ISTD falls to 0 as well where noise or prompt change nothing; what stands beside it tells."""
    deaf_to_noise = istd.istd(np.repeat(noise[:, :1], 4, axis=1))
    assert (deaf_to_noise.istd.value, deaf_to_noise.neighbour_distance.value) == (0, 0)
    assert deaf_to_noise.diversity is not None
    assert deaf_to_noise.diversity.low > 1
    deaf_to_prompts = istd.istd(np.repeat(noise[:1], 5, axis=0))
    assert deaf_to_prompts.diversity == diversity.Interval(0, 0, 0)
    assert deaf_to_prompts.neighbour_distance.value > 1


def test_interval_of_the_diversity_is_the_jackknife_and_covers(noise: np.ndarray) -> None:
    found = istd.istd(noise).diversity
    without = np.array([loops(np.delete(noise, prompt, axis=0))[1] for prompt in range(5)])
    error = math.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert found is not None
    assert (found.low, found.high) == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error), rel=1e-9)

    rng = np.random.default_rng(2)
    held = 0
    for _ in range(200):  # 30 prompts of two frames of six standard normal pixels: the squared distance is 12
        samples = rng.standard_normal((30, 2, 1, 2, 3))
        interval = diversity.diversity(diversity.spreads(lambda samples=samples: samples))
        held += interval.low <= math.sqrt(12) <= interval.high
    assert 0.88 <= held / 200 <= 1


def test_fewer_than_three_prompts_tell_no_diversity(noise: np.ndarray) -> None:
    assert istd.istd(noise[:2]).diversity is None
    with pytest.raises(ValueError, match=r"raise evaluate\.prompts"):
        diversity.diversity(np.ones(2))


def test_paired_difference_of_two_generators(noise: np.ndarray) -> None:
    base, smooth = istd.istd(noise), istd.istd(noise // 2)
    found = istd.paired_difference(smooth, base)
    assert found.value == pytest.approx(smooth.istd.value - base.istd.value)
    assert found.low < found.value < found.high < 0
    with pytest.raises(ValueError, match="same noises for both"):
        istd.paired_difference(smooth, istd.istd(noise[1:]))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (strip([0.0, 128.0]), r"\[0, 1\]"),
        (strip([0.0, 1.0]).astype(np.int64), "int64"),
        (strip([0.0, 1.0])[0], "expected pictures"),
        (strip([0.0]), "expected pictures"),
        (strip([0.0, np.nan]), r"\[0, 1\]"),
        (strip([0.0, 1.0])[:, :, :0], "expected pictures"),
        (strip([0.0, 1.0])[..., :2], "expected pictures"),
    ],
)
def test_refuses_an_unknown_scale_or_shape(pictures: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        istd.neighbour_distances(pictures)


def test_refuses_what_is_no_array_and_two_frames() -> None:
    with pytest.raises(TypeError, match="got list"):
        istd.istd([[0.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 frames have one distance"):
        istd.istd(strip([0.0, 1.0]))


def test_still_pictures_have_coefficient_zero() -> None:
    assert istd.variation_coefficient(np.zeros((2, 10))).tolist() == [0.0, 0.0]


def test_bootstrap_covers_and_repeats() -> None:
    values = np.random.default_rng(3).normal(5.0, 1.0, 400)
    interval = istd.bootstrap(values, seed=1)
    assert interval == istd.bootstrap(values, seed=1)
    assert interval.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_paired_interval_is_narrower_than_the_models_own() -> None:
    """Prompts differ far more than models do; the same prompts on both sides cancel that."""
    rng = np.random.default_rng(0)
    base = rng.normal(5.0, 2.0, 40)
    smooth = base - 0.5 + rng.normal(0, 0.1, 40)
    paired = istd.bootstrap(smooth - base, seed=0)
    alone = istd.bootstrap(base, seed=0)
    assert paired.high < 0
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def metric(model: str, value: float | None, **stamp: str | int | float) -> Metric:
    return Metric("ISTD", model, value, None, None, 2, dict(stamp))


def test_values_compare_only_under_one_protocol() -> None:
    assert metric("smooth", 1.0, steps=20).compare(metric("base", 3.0, steps=20)) == -2.0
    with pytest.raises(StampError, match="steps: 20 against 50"):
        metric("smooth", 1.0, steps=20).compare(metric("base", 3.0, steps=50))
    with pytest.raises(StampError, match="frames: 11 against None"):
        metric("smooth", 1.0, steps=20, frames=11).compare(metric("base", 3.0, steps=20))
    with pytest.raises(StampError, match="no value for base"):
        metric("smooth", 1.0).compare(metric("base", None))
