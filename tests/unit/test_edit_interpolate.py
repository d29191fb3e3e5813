"""Frames between two pictures: their ends, their order, and re-timing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from smooth.edit import interpolate
from smooth.edit.generate import generate
from smooth.edit.interpolate import Way, frames, retimed
from smooth.edit.invert import Inversion, invert, reconstruct
from smooth.models.pipeline import decode_latents, encode_pictures, load_pipeline

PROMPTS = ("red heart", "grinning face")
SETTINGS = {"steps": 4, "guidance": 3.0}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline("builtin:tiny")


@pytest.fixture(scope="module")
def pictures(pipeline: Any) -> np.ndarray:
    return generate(pipeline, PROMPTS, [7, 8], **SETTINGS)


@pytest.fixture(scope="module")
def inverted(pipeline: Any, pictures: np.ndarray) -> Inversion:
    return invert(pipeline, pictures, PROMPTS, **SETTINGS, null_text_steps=2, shared=True)


def idle() -> None:
    """No progress."""


def test_the_ends_are_the_plain_generations(pipeline: Any, pictures: np.ndarray) -> None:
    way = interpolate.generated(pipeline, PROMPTS, (7, 8), **SETTINGS)
    found = frames(way, 3)
    assert np.array_equal(found.pictures[[0, -1]], pictures)
    assert found.ratios.tolist() == [0, 0.5, 1]
    assert (found.distances > 0).all()
    half = np.linalg.norm((found.pictures[1] / 255.0 - pictures[0] / 255.0).ravel())
    assert found.distances[0] == pytest.approx(half)


def test_one_seed_changes_the_prompt_alone(pipeline: Any, pictures: np.ndarray) -> None:
    way = interpolate.generated(pipeline, PROMPTS, (7, 7), **SETTINGS)
    assert np.array_equal(way(0.0, idle)[0], pictures[0])
    assert np.array_equal(way(1.0, idle), generate(pipeline, PROMPTS[1:], [7], **SETTINGS))


def test_real_pictures_come_back_at_the_ends(pipeline: Any, inverted: Inversion) -> None:
    way = interpolate.real(pipeline, inverted)
    ends = np.concatenate([way(0.0, idle), way(1.0, idle)])
    assert np.array_equal(ends, reconstruct(pipeline, inverted))
    middle = way(0.5, idle)
    assert not np.array_equal(middle[0], ends[0])


def test_real_pictures_want_shared_embeddings(pipeline: Any, inverted: Inversion, pictures: np.ndarray) -> None:
    apart = invert(pipeline, pictures, PROMPTS, steps=2, guidance=3.0, null_text_steps=0)
    with pytest.raises(ValueError, match="call invert with shared=True"):
        interpolate.real(pipeline, apart)


def test_the_vae_cross_fades(pipeline: Any, pictures: np.ndarray) -> None:
    way = interpolate.vae(pipeline, pictures)
    clean = encode_pictures(pipeline, pictures)
    ends = np.concatenate([decode_latents(pipeline, each) for each in clean.split(1)])
    assert np.array_equal(np.concatenate([way(0.0, idle), way(1.0, idle)]), ends)
    middle, mean = way(0.5, idle).astype(float), ends.mean(axis=0)
    assert np.abs(middle - mean).mean() < 0.5 * np.abs(ends[0].astype(float) - ends[1]).mean()


def test_anid_keeps_more_of_the_picture_the_less_noise_it_adds(pipeline: Any, pictures: np.ndarray) -> None:
    errors = []
    for noising in (0.25, 1.0):
        way = interpolate.anid(pipeline, pictures, PROMPTS, **SETTINGS, noising=noising)
        errors.append(float(np.square(way(0.0, idle)[0] / 255.0 - pictures[0] / 255.0).mean()))
        assert np.array_equal(way(0.5, idle), way(0.5, idle))
    assert errors[0] < 0.5 * errors[1]
    with pytest.raises(ValueError, match="noising=0: give a share"):
        interpolate.anid(pipeline, pictures, PROMPTS, **SETTINGS, noising=0)


def curve(bend: Callable[[float], float]) -> Way:
    """A grey picture that brightens along ``bend``: its distances are known."""
    return lambda ratio, each_step: np.full((1, 8, 8, 3), round(250 * bend(ratio)), np.uint8)


@pytest.mark.parametrize(
    "bend", [lambda r: r**3, lambda r: r**0.3, lambda r: 1 / (1 + np.exp(-20 * (r - 0.4))), lambda r: r]
)
def test_equal_steps_are_equal(bend: Callable[[float], float]) -> None:
    plain, even = frames(curve(bend), 9), frames(curve(bend), 9, equal_steps=True)
    assert even.variation_coefficient <= plain.variation_coefficient
    assert even.variation_coefficient < 0.06  # grey has whole steps
    assert (np.diff(even.ratios) > 0).all()
    assert even.ratios[[0, -1]].tolist() == [0, 1]


def test_equal_steps_are_those_of_the_distance_that_is_asked_for() -> None:
    """By the square of the grey level, so bright neighbours are nearer than dark ones."""

    def squares(pictures: np.ndarray) -> np.ndarray:
        return np.abs(np.diff(np.square(pictures[:, 0, 0, 0] / 250.0)))

    found = frames(curve(lambda ratio: ratio), 6, equal_steps=True, distance=squares)
    assert found.ratios == pytest.approx(np.sqrt(np.linspace(0, 1, 6)), abs=0.01)


def test_a_way_that_stands_still_keeps_its_ratios() -> None:
    found = frames(curve(lambda ratio: 0.5), 5, equal_steps=True)
    assert found.ratios.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.variation_coefficient == 0
    assert retimed(np.array([0, 0.5, 1]), np.array([1.0, 1.0])) == pytest.approx([0, 0.5, 1])
    assert 0 < retimed(np.array([0, 0.5, 1]), np.array([3.0, 1.0]))[1] < 0.5


def test_a_jump_is_no_trap() -> None:
    found = frames(curve(lambda ratio: float(ratio > 0.3)), 8, equal_steps=True)
    assert found.pictures.shape == (8, 8, 8, 3)
    assert (np.diff(found.ratios) >= 0).all()


def test_equal_steps_on_the_built_in_base(pipeline: Any) -> None:
    way = interpolate.generated(pipeline, PROMPTS, (7, 8), steps=3, guidance=3.0)
    plain, even = frames(way, 5), frames(way, 5, equal_steps=True)
    assert even.variation_coefficient < 0.7 * plain.variation_coefficient
    assert np.array_equal(even.pictures[[0, -1]], plain.pictures[[0, -1]])


def test_progress_counts_frames_and_can_end_the_work(pipeline: Any) -> None:
    told: list[tuple[int, int]] = []
    way = interpolate.generated(pipeline, PROMPTS, (7, 8), steps=2, guidance=3.0)
    frames(way, 2, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (0, 2), (1, 2), (1, 2), (1, 2), (2, 2), (2, 2)]

    class CancelledError(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        frames(way, 2, progress=cancel)


@pytest.mark.parametrize("count", [1, 0, 201])
def test_numbers_of_frames_that_can_not_be(count: int) -> None:
    with pytest.raises(ValueError, match=f"frames={count}: give 2 to 200"):
        frames(curve(lambda ratio: ratio), count)
