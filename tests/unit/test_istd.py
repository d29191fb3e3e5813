"""ISTD by hand on pictures whose distances are known."""

from __future__ import annotations

import numpy as np
import pytest

from smooth.evaluate import istd
from smooth.evaluate.metric import Metric, StampError


def strip(levels: list[float], size: int = 4) -> np.ndarray:
    """One interpolation of plain grey pictures, (1, F, size, size, 3)."""
    return np.stack([np.full((size, size, 3), level) for level in levels])[None]


def test_equal_steps_have_no_deviation() -> None:
    pictures = strip([0.0, 0.25, 0.5, 0.75, 1.0])
    assert istd.neighbour_distances(pictures) == pytest.approx(0.25 * np.sqrt(48))
    assert istd.istd(pictures) == pytest.approx(0.0, abs=1e-12)


def test_known_steps_give_the_population_deviation_in_unit_pixels() -> None:
    """Steps 0.1 and 0.3 on 48 values: distances 0.1 s and 0.3 s with s = sqrt(48), deviation 0.1 s."""
    pictures = strip([0.0, 0.1, 0.4])
    assert istd.istd(pictures) == pytest.approx(0.1 * np.sqrt(48))
    assert istd.variation_coefficient(istd.neighbour_distances(pictures)) == pytest.approx(0.5)


def test_bytes_and_floats_agree_and_bytes_do_not_wrap() -> None:
    levels = [200.0, 3.0, 255.0]
    of_bytes = istd.neighbour_distances(strip(levels).astype(np.uint8))
    np.testing.assert_allclose(of_bytes, istd.neighbour_distances(strip(levels) / 255.0))
    assert of_bytes[0, 0] == pytest.approx(197 / 255 * np.sqrt(48))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (strip([0.0, 128.0]), r"\[0, 1\]"),
        (strip([0.0, 1.0]).astype(np.int64), "int64"),
        (strip([0.0, 1.0])[0], "expected pictures"),
        (strip([0.0]), "expected pictures"),
        (strip([0.0, np.nan]), r"\[0, 1\]"),
    ],
)
def test_refuses_an_unknown_scale_or_shape(pictures: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        istd.neighbour_distances(pictures)


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
