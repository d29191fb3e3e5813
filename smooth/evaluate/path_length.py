"""Diffusion PPL: the perceptual path length of StyleGAN2 (arXiv 1912.04958) between the noises of a diffusion model.

    PPL = E [ d( G(slerp(z0, z1, t)), G(slerp(z0, z1, t + epsilon)) ) / epsilon^2 ],   t ~ U(0, 1)

The mean leaves out what is below the 1st or above the 99th percentile, as theirs does. ISTD tells how evenly a path is
walked, PPL how long it is.

``EPSILON`` is not StyleGAN2's 1e-4: rounding in float32 is divided by its square. On the built-in base (10 steps,
guidance 3, six paths, ``python -m tests.benchmarks.path_length_step``) the mean by pixels in float64, and what float32
makes of a path at most, is

    epsilon       1e-1     3e-2     1e-2     1e-3     1e-4
    mean         11800    20420    21630    22090    22270
    rounding  0.0013 %  0.0023 %  0.0076 %  0.059 %   0.73 %

so that at 1e-3 the step is short enough for 1 % of the limit, as it is not at 1e-2, and rounding costs far less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from smooth.diffusion.sampler import slerp
from smooth.evaluate.diversity import Interval
from smooth.evaluate.istd import bootstrap

EPSILON = 1e-3
PERCENTILES = (1.0, 99.0)

Generate = Callable[[Sequence[int], torch.Tensor], torch.Tensor]
"""pictures (B, C, H, W), floating point, of the paths' indices (B) and noises (B, ...)"""
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(B,) squared distances of pictures (B, C, H, W); LPIPS is of that kind, too"""


@dataclass(frozen=True)
class PathLength:
    """PPL with its 95 % interval over the paths that were kept."""

    ppl: Interval
    per_path: npt.NDArray[np.float64]
    """(N,) of all paths"""
    kept: npt.NDArray[np.bool_]
    """(N,) within the percentiles"""
    stamp: dict[str, str | int | float]


@torch.no_grad()
def path_length(
    generate: Generate,
    distance: Distance,
    starts: torch.Tensor,
    ends: torch.Tensor,
    *,
    seed: int = 0,
    epsilon: float = EPSILON,
    percentiles: tuple[float, float] = PERCENTILES,
    batch_size: int = 8,
) -> PathLength:
    """Walk ``epsilon`` along each path from noise ``starts[n]`` to ``ends[n]``, at a random place of it.

    Args:
        generate: the model, on the same conditions for both ends of a step; bytes would round the step away.
        distance: of two batches of pictures.
        starts: (N, ...) floating point; float64 where the model takes it.
        ends: the same shape.
        seed: of the places and of the bootstrap.
        epsilon: share of the path.
        percentiles: lowest and highest that count.
        batch_size: paths at a time, two pictures each.

    Raises:
        ValueError: shapes differ, no path, integer pictures, distances that are not finite, or a bad epsilon.
    """
    if starts.shape != ends.shape or not len(starts):
        raise ValueError(f"expected as many starts as ends, got {tuple(starts.shape)} and {tuple(ends.shape)}")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon={epsilon} is no share of a path; give one above 0 and below 1")
    found = []
    for first in range(0, len(starts), batch_size):
        part = range(first, min(first + batch_size, len(starts)))
        batch = slice(part.start, part.stop)
        found += lengths(generate, [distance], part, starts[batch], ends[batch], seed=seed, epsilon=epsilon)
    per_path = np.concatenate(found)
    kept = within(per_path, percentiles)
    return PathLength(bootstrap(per_path[kept], seed), per_path, kept, stamp(epsilon, percentiles))


@torch.no_grad()
def lengths(
    generate: Generate,
    distances: Sequence[Distance],
    indices: range,
    starts: torch.Tensor,
    ends: torch.Tensor,
    *,
    seed: int,
    epsilon: float = EPSILON,
) -> list[npt.NDArray[np.float64]]:
    """``d / epsilon^2`` of paths ``indices``, (B,) by each distance; they are generated as one batch of 2 B pictures.

    Args:
        generate: as of :func:`path_length`.
        distances: all of the same pictures.
        indices: of the paths.
        starts: (B, ...) their noises.
        ends: the same shape.
        seed: a path's place is drawn by it and the path's index.
        epsilon: share of the path.

    Raises:
        ValueError: integer pictures, or distances that are not finite.
    """
    places = [float(np.random.default_rng([seed, index]).uniform()) for index in indices]
    noises = [
        slerp(start, end, place + step)
        for step in (0, epsilon)
        for start, end, place in zip(starts, ends, places, strict=True)
    ]
    pictures = generate([*indices, *indices], torch.stack(noises))
    if not pictures.is_floating_point():
        raise ValueError(f"pictures are {pictures.dtype}; a step of {epsilon} needs floating point")
    found = [
        (distance(*pictures.chunk(2)).detach().cpu().double().flatten() / epsilon**2).numpy() for distance in distances
    ]
    if not all(np.isfinite(each).all() for each in found):
        raise ValueError("a distance is not finite; look at the pictures, or raise epsilon")
    return found


def stamp(epsilon: float = EPSILON, percentiles: tuple[float, float] = PERCENTILES) -> dict[str, str | int | float]:
    """What a PPL depends on besides the model, the conditions and the distance."""
    return {
        "epsilon": epsilon,
        "percentiles": f"{percentiles[0]:g} to {percentiles[1]:g}",
        "sampling": "full path",
        "interpolation": "slerp",
    }


def squared_pixels(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared L2 over all pixels, (B,) float64: the distance of ISTD, where no perceptual network is at hand."""
    return (a.double() - b.double()).square().flatten(1).sum(dim=1)


def within(values: npt.NDArray[np.float64], percentiles: tuple[float, float] = PERCENTILES) -> npt.NDArray[np.bool_]:
    """StyleGAN2's filter: from the value below the lower percentile to the one above the higher."""
    low = np.percentile(values, percentiles[0], method="lower")
    high = np.percentile(values, percentiles[1], method="higher")
    return np.asarray((low <= values) & (values <= high))
