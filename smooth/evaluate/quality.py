"""Quality as metrics: what features of pictures tell against those of reference pictures, with intervals and stamps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smooth.evaluate import cmmd, embedders
from smooth.evaluate.embedders import Embedder
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


def embedded(
    embedder: Embedder, model: str, found: npt.NDArray[Any], reference: npt.NDArray[Any], stamp: Stamp, seed: int
) -> list[Metric]:
    """What an embedder's columns tell: of DINOv2 the Fréchet distance, of CLIP CMMD and the score."""
    n, label = len(found), embedder.label
    stamped = {**stamp, **embedder.stamp, "references": len(reference), "n": n}
    if embedder.kind == "dinov2":
        fit, target = Moments.of(found), Moments.of(reference)
        value = gaussian_distance(fit.mean, fit.covariance, target.mean, target.covariance)
        return [Metric(f"FD-DINOv2{label}", model, value, None, None, n, stamped, note=bias(fit, target))]
    distance = cmmd.cmmd(found[:, :-1], reference[:, :-1])
    score = bootstrap(clip_scores(found), seed)
    return [
        Metric(f"CMMD{label}", model, distance, None, None, n, stamped | cmmd.STAMP),
        Metric(f"CLIP score{label}", model, score.value, score.low, score.high, n, {**stamp, **embedder.stamp, "n": n}),
    ]


def clip_scores(found: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """100 times the cosine to the prompt, not below 0 (arXiv 2104.08718), of each of CLIP's rows: (N,)."""
    return 100 * np.clip(found[:, -1].astype(np.float64), 0, None)


def unavailable(kinds: set[str], model: str) -> list[Metric]:
    """The metrics of embedders that aren't at hand, all but ``kinds``."""
    return [
        Metric(name, model, None, None, None, 0, note=embedders.missing(kind))
        for kind in embedders.KINDS
        if kind not in kinds
        for name in embedders.METRICS[kind]
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
