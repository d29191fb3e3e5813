"""Quality as metrics: what features of pictures tell against those of reference pictures, with intervals and stamps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smooth.evaluate.frechet import bias, gaussian_distance, kernel_distance
from smooth.evaluate.istd import bootstrap
from smooth.evaluate.manifold import DENSITY_K, PRECISION_K, manifold
from smooth.evaluate.metric import Metric
from smooth.evaluate.moments import Moments

Stamp = dict[str, str | int | float]


@dataclass(frozen=True)
class Space:
    """A feature space by its network: values of two spaces never compare, so its name is part of theirs."""

    name: str
    stamp: Stamp
    frechet: str = "Fréchet distance"
    """what the Fréchet distance in it is called"""


def quality(
    space: Space, model: str, found: npt.NDArray[Any], reference: npt.NDArray[Any], stamp: Stamp, seed: int
) -> list[Metric]:
    """All metrics of features found (N, D) against reference ones (M, D); ``stamp`` says what was sampled."""
    n = len(found)
    stamped = {**stamp, **space.stamp, "references": len(reference), "n": n}
    kid = kernel_distance(found, reference)
    low, high = kid.interval
    fit, target = Moments.of(found), Moments.of(reference)
    frechet = gaussian_distance(fit.mean, fit.covariance, target.mean, target.covariance)
    return [
        Metric(f"KID ({space.name}) x1000", model, 1e3 * kid.value, 1e3 * low, 1e3 * high, n, stamped),
        Metric(f"{space.frechet} ({space.name})", model, frechet, None, None, n, stamped, note=bias(fit, target)),
        *_manifold(space, model, found, reference, stamped, seed),
    ]


def _manifold(
    space: Space, model: str, found: npt.NDArray[Any], reference: npt.NDArray[Any], stamp: Stamp, seed: int
) -> list[Metric]:
    """Each interval is over the pictures that its metric is a mean of; the other set is held."""
    ks = {"precision": PRECISION_K, "recall": PRECISION_K, "density": DENSITY_K, "coverage": DENSITY_K}
    stamps = {
        name: stamp | {"k": k, "rim": "inside", "interval": "bootstrap, other set held"} for name, k in ks.items()
    }
    fewest = min(len(found), len(reference))
    if fewest <= max(ks.values()):
        note = f"needs more than {max(ks.values())} pictures, has {fewest}; raise evaluate.pictures"
        return [Metric(f"{name} ({space.name})", model, None, None, None, 0, stamps[name], note=note) for name in ks]
    parts = manifold(found, reference)
    metrics = []
    for name in ks:
        values: npt.NDArray[np.float64] = getattr(parts, name)
        interval = bootstrap(values, seed)
        metrics.append(
            Metric(
                f"{name} ({space.name})",
                model,
                interval.value,
                interval.low,
                interval.high,
                values.size,
                stamps[name],
            )
        )
    return metrics
