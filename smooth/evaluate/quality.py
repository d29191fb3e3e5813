"""Quality as metrics: what features of pictures tell against those of reference pictures, with intervals and stamps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from smooth.evaluate import cmmd, networks
from smooth.evaluate.frechet import bias, frechet_distance, kernel_distance
from smooth.evaluate.istd import bootstrap
from smooth.evaluate.manifold import DENSITY_K, PRECISION_K, manifold
from smooth.evaluate.metric import Metric
from smooth.evaluate.moments import Moments
from smooth.evaluate.networks import INCEPTION, Kind, Network

Stamp = dict[str, str | int | float]


def quality(
    network: Network, model: str, found: npt.NDArray[Any], reference: npt.NDArray[Any], stamp: Stamp, seed: int
) -> list[Metric]:
    """All metrics of features found (N, D) against reference ones (M, D); ``stamp`` says what was sampled."""
    told = {"clip": _clip, "dinov2": _dinov2}.get(network.kind, _distances)
    return told(network, model, found, reference, {**stamp, **network.stamp}, seed)


def _distances(
    network: Network, model: str, found: npt.NDArray[Any], reference: npt.NDArray[Any], stamp: Stamp, seed: int
) -> list[Metric]:
    n, label = len(found), network.label
    stamped = stamp | {"references": len(reference), "n": n}
    kid = kernel_distance(found, reference)
    low, high = kid.interval
    name = "FID" if label == INCEPTION else "Fréchet distance"
    return [
        Metric(f"KID ({label}) x1000", model, 1e3 * kid.value, 1e3 * low, 1e3 * high, n, stamped),
        _frechet(f"{name} ({label})", model, found, reference, stamped),
        *_manifold(network, model, found, reference, stamped, seed),
    ]


def _dinov2(
    network: Network, model: str, found: npt.NDArray[Any], reference: npt.NDArray[Any], stamp: Stamp, _seed: int
) -> list[Metric]:
    stamped = stamp | {"references": len(reference), "n": len(found)}
    return [_frechet(f"FD-DINOv2{network.label}", model, found, reference, stamped)]


def _clip(
    network: Network, model: str, found: npt.NDArray[Any], reference: npt.NDArray[Any], stamp: Stamp, seed: int
) -> list[Metric]:
    n, label = len(found), network.label
    stamped = stamp | {"references": len(reference), "n": n} | cmmd.STAMP
    distance = cmmd.cmmd(found[:, :-1], reference[:, :-1])
    score = bootstrap(clip_scores(found), seed)
    return [
        Metric(f"CMMD{label}", model, distance, None, None, n, stamped),
        Metric(f"CLIP score{label}", model, score.value, score.low, score.high, n, stamp | {"n": n}),
    ]


def clip_difference(
    network: Network, base: npt.NDArray[Any], smooth: npt.NDArray[Any], stamp: Stamp, seed: int
) -> Metric:
    """The paired difference of the CLIP score: same prompts, same noises."""
    values = clip_scores(smooth) - clip_scores(base)
    interval = bootstrap(values, seed)
    stamped = {**stamp, **network.stamp, "n": len(values)}
    name = f"CLIP score{network.label}"
    return Metric(name, "smooth - base", interval.value, interval.low, interval.high, len(values), stamped)


def _frechet(name: str, model: str, found: npt.NDArray[Any], reference: npt.NDArray[Any], stamp: Stamp) -> Metric:
    fit, target = Moments.merged(found), Moments.merged(reference)
    return Metric(name, model, frechet_distance(fit, target), None, None, len(found), stamp, note=bias(fit, target))


def clip_scores(found: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """100 times the cosine to the prompt, not below 0 (arXiv 2104.08718), of each of CLIP's rows: (N,)."""
    return 100 * np.clip(found[:, -1].astype(np.float64), 0, None)


def unavailable(kind: Kind, model: str) -> list[Metric]:
    """The metrics of a network that isn't at hand."""
    return [Metric(name, model, None, None, None, 0, note=networks.missing(kind)) for name in networks.METRICS[kind]]


def _manifold(
    network: Network, model: str, found: npt.NDArray[Any], reference: npt.NDArray[Any], stamp: Stamp, seed: int
) -> list[Metric]:
    """Each interval is over the pictures that its metric is a mean of; the other set is held."""
    ks = {"precision": PRECISION_K, "recall": PRECISION_K, "density": DENSITY_K, "coverage": DENSITY_K}
    stamps = {
        name: stamp | {"k": k, "rim": "inside", "interval": "bootstrap, other set held"} for name, k in ks.items()
    }
    fewest = min(len(found), len(reference))
    if fewest <= max(ks.values()):
        note = f"needs more than {max(ks.values())} pictures, has {fewest}; raise evaluate.pictures"
        return [Metric(f"{name} ({network.label})", model, None, None, None, 0, stamps[name], note=note) for name in ks]
    parts = manifold(found, reference)
    metrics = []
    for name in ks:
        values: npt.NDArray[np.float64] = getattr(parts, name)
        interval = bootstrap(values, seed)
        metrics.append(
            Metric(
                f"{name} ({network.label})",
                model,
                interval.value,
                interval.low,
                interval.high,
                values.size,
                stamps[name],
            )
        )
    return metrics
