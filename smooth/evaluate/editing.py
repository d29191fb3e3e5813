"""How an edit keeps what it should not touch, and how far it goes where it should.

The pictures come in pairs of which source and target are known, so the region to be edited is, too: where they differ.
*Outside* is the distance of the edited picture to the source beyond that region, widened by a margin for what one
latent paints. *Strength* is how much of the way from source to target it went within the region. A model that edits
nothing keeps the outside best, so outside distances mean something at the same strength alone: every model is measured
at several settings (ratios of the prompt switch, strengths of SDEdit), and two are compared along their curves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smooth.evaluate.diversity import Interval
from smooth.evaluate.istd import RESAMPLES, bootstrap

MARGIN = 4  # pixels: side of what one latent paints in the built-in base, half of Stable Diffusion's
LEAST_CHANGE = 8 / 255  # antialiasing and the renderer's rounding are no change
LEVELS = 9  # strengths at which two curves are compared, evenly between the ends that both reach

FloatArray = npt.NDArray[np.float64]
Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Edits:
    """One model's edits: R settings of B pairs."""

    outside: FloatArray
    """(R, B) root mean square distance to the source outside of the widened region, pixels in [0, 1]"""
    strength: FloatArray
    """(R, B) share of the way from source to target within the region: 0 the source, 1 as far as the target"""
    remaining: FloatArray
    """(R, B) distance to the target over that of the source to it, within the region: 1 the source, 0 the target"""


def measure(sources: Pictures, targets: Pictures, edited: Pictures, margin: int = MARGIN) -> Edits:
    """Measure edits of pairs.

    Args:
        sources: (B, H, W, 3) uint8.
        targets: the same shape, what an edit should give.
        edited: (R, B, H, W, 3) uint8.
        margin: pixels by which the region is widened before its outside is looked at.

    Raises:
        ValueError: shapes that do not fit, a pair with no difference, or one that differs everywhere.
    """
    if sources.shape != targets.shape or edited.shape[1:] != sources.shape:
        raise ValueError(
            f"edits {edited.shape} of sources {sources.shape} and targets {targets.shape}: give (R, B, H, W, 3) of "
            "(B, H, W, 3)"
        )
    rows = []
    for source, target, each in zip(sources / 255.0, targets / 255.0, np.moveaxis(edited, 1, 0) / 255.0, strict=True):
        inside, beyond = regions(source, target, margin)
        wanted = (target - source)[inside].ravel()
        made, missing = (each - source)[:, inside], (target - each)[:, inside]
        rows.append(
            (
                np.sqrt(np.square((each - source)[:, beyond]).mean(axis=(1, 2))),
                made.reshape(len(each), -1) @ wanted / (wanted @ wanted),
                np.sqrt(np.square(missing).sum(axis=(1, 2)) / (wanted @ wanted)),
            )
        )
    outside, strength, remaining = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    return Edits(outside, strength, remaining)


def regions(source: FloatArray, target: FloatArray, margin: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Where an edit belongs, and where it does not: (H, W) each, with a margin between them.

    Args:
        source: (H, W, 3) in [0, 1].
        target: the same shape.
        margin: pixels, along rows and columns.

    Raises:
        ValueError: one of them is empty.
    """
    from scipy.ndimage import binary_dilation

    inside = np.asarray((np.abs(target - source) > LEAST_CHANGE).any(axis=2))
    beyond = ~np.asarray(binary_dilation(inside, np.ones((2 * margin + 1,) * 2)))
    if not inside.any() or not beyond.any():
        what = "nowhere" if not inside.any() else "everywhere"
        raise ValueError(f"source and target differ {what}: choose a pair that differs in a part of the picture")
    return inside, beyond


def paired_difference(model: FloatArray, base: FloatArray, seed: int = 0) -> list[Interval]:
    """Mean over pairs of (R, B) values of a model minus those of another, one 95 % interval for each setting."""
    return [bootstrap(difference, seed) for difference in model - base]


def matched_difference(model: Edits, base: Edits, seed: int = 0) -> Interval | None:
    """Outside distance of a model minus that of another at the same strength, with its paired 95 % interval.

    Each model's settings make a curve: mean outside distance over mean strength. The value is the mean difference of
    the two curves over the strengths that both reach. The pairs are drawn again, the same for both models.

    Returns:
        None where the curves share no strength.
    """
    columns = np.concatenate([model.strength, model.outside, base.strength, base.outside])

    def difference(means: FloatArray) -> float:
        model_strength, model_outside, base_strength, base_outside = means.reshape(4, -1)
        low = max(model_strength.min(), base_strength.min())
        high = min(model_strength.max(), base_strength.max())
        if low >= high:
            return float("nan")
        levels = np.linspace(low, high, LEVELS)
        found = _curve(model_strength, model_outside, levels) - _curve(base_strength, base_outside, levels)
        return float(found.mean())

    return _resampled(columns, difference, seed)


def _curve(strength: FloatArray, outside: FloatArray, levels: FloatArray) -> FloatArray:
    order = np.argsort(strength)
    return np.interp(levels, strength[order], outside[order])


def _resampled(columns: FloatArray, statistic: Callable[[FloatArray], float], seed: int) -> Interval | None:
    """A statistic of the means of (C, B) over the pairs, with its percentile interval; None where it has no value."""
    value = statistic(columns.mean(axis=1))
    if np.isnan(value):
        return None
    rng = np.random.default_rng(seed)
    drawn = [statistic(columns[:, rng.integers(columns.shape[1], size=columns.shape[1])].mean(axis=1))
             for _ in range(RESAMPLES)]  # fmt: skip
    if np.isnan(drawn).any():  # too few pairs to tell
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))
