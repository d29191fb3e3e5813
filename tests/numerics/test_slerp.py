"""Slerp against its closed form and its geometry, and noises as functions of (seed, stream, index)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from smooth.diffusion.sampler import noise, slerp


def test_orthogonal_noises_follow_the_circle() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for ratio in (0.0, 0.1, 0.5, 0.9, 1.0):
        expected = torch.tensor([2 * math.cos(ratio * math.pi / 2), 2 * math.sin(ratio * math.pi / 2)])
        torch.testing.assert_close(slerp(a, b, ratio), expected, atol=1e-6, rtol=0)


def test_gaussian_noises_agree_with_the_textbook_formula_in_double() -> None:
    a, b = noise(0, "a", 0, (4, 16, 16)).double(), noise(0, "b", 0, (4, 16, 16)).double()
    angle = math.acos(float((a * b).sum() / (a.norm() * b.norm())))
    for step in range(11):
        ratio = step / 10
        expected = (math.sin((1 - ratio) * angle) * a + math.sin(ratio * angle) * b) / math.sin(angle)
        torch.testing.assert_close(slerp(a, b, ratio), expected, atol=1e-12, rtol=0)


def test_stays_in_the_shell_of_gaussian_noise_where_a_straight_line_leaves_it() -> None:
    a, b = noise(1, "a", 0, (4, 16, 16)), noise(1, "b", 0, (4, 16, 16))
    assert slerp(a, b, 0.5).std() == pytest.approx(1.0, abs=0.05)
    assert ((a + b) / 2).std() < 0.8


def test_ends_are_exact_and_equal_steps_turn_equal_angles() -> None:
    a, b = noise(2, "a", 0, (64,)).double(), noise(2, "b", 0, (64,)).double()
    a, b = a / a.norm(), b / b.norm()
    points = [slerp(a, b, step / 10) for step in range(11)]
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[-1], b)
    chords = torch.stack([(p - q).norm() for p, q in itertools.pairwise(points)])
    assert float(chords.std()) < 1e-12


@pytest.mark.parametrize("epsilon", [0.0, 1e-9, 1e-6, 1e-3])
def test_nearly_equal_noises_are_finite_and_right(epsilon: float) -> None:
    a = noise(3, "a", 0, (128,)).double()
    b = a + epsilon * noise(3, "b", 0, (128,)).double()
    torch.testing.assert_close(slerp(a, b, 0.25), 0.75 * a + 0.25 * b, atol=1e-6, rtol=0)


def test_what_has_no_answer_is_refused() -> None:
    a = noise(4, "a", 0, (16,))
    with pytest.raises(ValueError, match="opposite"):
        slerp(a, -a, 0.5)
    with pytest.raises(ValueError, match="zero noise"):
        slerp(a, torch.zeros(16), 0.5)
    with pytest.raises(ValueError, match="one shape"):
        slerp(a, torch.ones(8), 0.5)


def test_noise_is_a_function_of_its_arguments_alone() -> None:
    first = noise(5, "a", 7, (1000,))
    torch.manual_seed(0)
    assert torch.equal(first, noise(5, "a", 7, (1000,)))
    for other in (noise(6, "a", 7, (1000,)), noise(5, "b", 7, (1000,)), noise(5, "a", 8, (1000,))):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.15
    assert float(first.mean()) == pytest.approx(0, abs=0.15)
    assert float(first.std()) == pytest.approx(1, abs=0.1)
