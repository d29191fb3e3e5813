"""Diffusion PPL of generators whose path length has a closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from smooth.evaluate.path_length import EPSILON, path_length, squared_pixels

SHAPE = (3, 4, 4)


def circle(paths: int, radius: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Starts and ends of equal length at right angles, so that slerp walks a quarter of a circle."""
    generator = torch.Generator().manual_seed(0)
    starts, others = torch.randn((2, paths, *SHAPE), generator=generator, dtype=torch.float64)
    flat, other = starts.flatten(1), others.flatten(1)
    other = other - flat * ((other * flat).sum(1) / flat.square().sum(1))[:, None]
    return tuple((radius * x / x.norm(dim=1, keepdim=True)).reshape(paths, *SHAPE) for x in (flat, other))  # type: ignore[return-value]


def identity(_: Sequence[int], noises: torch.Tensor) -> torch.Tensor:
    return noises


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_identity_walks_a_circle(batch_size: int) -> None:
    """A step of epsilon turns by w = epsilon pi / 2; its chord is 2 r sin(w / 2)."""
    found = path_length(identity, squared_pixels, *circle(10), epsilon=1e-4, batch_size=batch_size)
    expected = (2 * 2.0 * math.sin(1e-4 * math.pi / 4) / 1e-4) ** 2
    assert found.per_path == pytest.approx(np.full(10, expected), rel=1e-6)
    assert (found.ppl.value, found.ppl.low, found.ppl.high) == pytest.approx((expected,) * 3, rel=1e-6)
    assert expected == pytest.approx((2.0 * math.pi / 2) ** 2, rel=1e-8)


def test_a_generator_that_stretches_paths_scores_by_their_gains_squared() -> None:
    """Path n is stretched by n + 1. The two extremes stay at N = 40: the percentiles lie between neighbours."""
    gains = torch.arange(1.0, 41.0, dtype=torch.float64)
    found = path_length(
        lambda indices, noises: gains[list(indices), None, None, None] * noises, squared_pixels, *circle(40)
    )
    assert found.kept.all()
    assert found.ppl.value == pytest.approx((math.pi**2) * float(gains.square().mean()), rel=1e-6)
    assert found.ppl.low < found.ppl.value < found.ppl.high


def test_percentiles_leave_out_what_stylegan2_leaves_out() -> None:
    """Of 301 lengths 0 to 300 the 1st percentile is 3 and the 99th 297, both kept."""
    lengths = torch.arange(301.0, dtype=torch.float64)[torch.randperm(301, generator=torch.Generator().manual_seed(1))]
    found = path_length(
        lambda indices, noises: lengths[list(indices)].reshape(-1, 1, 1, 1),
        lambda a, _: a.flatten() * EPSILON**2,
        *circle(301),
    )
    assert sorted(found.per_path[found.kept].round()) == list(range(3, 298))
    assert found.ppl.value == pytest.approx(150)


def test_a_still_model_has_no_length_and_a_place_is_drawn_by_the_seed() -> None:
    starts, ends = circle(5)
    still = path_length(lambda _, noises: torch.zeros_like(noises), squared_pixels, starts, ends)
    assert still.ppl.value == 0

    def cubed(_: Sequence[int], noises: torch.Tensor) -> torch.Tensor:
        return noises**3

    first, again, other = (path_length(cubed, squared_pixels, starts, ends, seed=seed).per_path for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_what_tells_nothing_is_refused() -> None:
    starts, ends = circle(4)
    with pytest.raises(ValueError, match=r"uint8; a step of 0\.001 needs floating point"):
        path_length(lambda _, noises: noises.to(torch.uint8), squared_pixels, starts, ends)
    with pytest.raises(ValueError, match="as many starts as ends"):
        path_length(identity, squared_pixels, starts, ends[:3])
    with pytest.raises(ValueError, match="epsilon=0 is no share"):
        path_length(identity, squared_pixels, starts, ends, epsilon=0)
    with pytest.raises(ValueError, match="not finite"):
        path_length(lambda _, noises: noises * math.inf, squared_pixels, starts, ends)
