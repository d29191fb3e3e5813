"""From what was measured of two models to metrics with intervals, and to the table that people read."""

from __future__ import annotations

import re
from typing import Protocol as Typing

import numpy as np
import numpy.typing as npt

from smooth.evaluate import features, inception, istd, reconstruction
from smooth.evaluate.metric import Metric
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.quality import Space, clip_scores, embedded, quality, unavailable
from smooth.evaluate.reconstruction import Reconstructed
from smooth.evaluate.smoothness import ISTD as ISTD
from smooth.evaluate.smoothness import istd_difference, lpips_istd_of, smoothness

KID = f"KID ({features.NAME}) x1000"


class Measured(Typing):
    """What is needed of a model's measurement."""

    @property
    def distances(self) -> npt.NDArray[np.float64]:
        """(P, F - 1) distances of neighbouring frames."""

    @property
    def spreads(self) -> npt.NDArray[np.float64]:
        """(P,) squared distances of each prompt's frames from the mean ones."""

    @property
    def perceptual(self) -> npt.NDArray[np.float64] | None:
        """(P, F - 1) LPIPS of neighbouring frames, where its network is there."""

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """(N, D) features of single pictures, Inception-v3's after EfficientNet-Lite0's where it has weights."""


def metrics_of(
    protocol: Protocol,
    base: Measured,
    smooth: Measured,
    reference: npt.NDArray[np.float32],
    reconstructed: Reconstructed | None = None,
    network: PerceptualNetwork | None = None,
) -> list[Metric]:
    """All metrics of base and fine-tuned, and paired differences; ``network`` is LPIPS's, where its file is there."""
    metrics = []
    for name, measured in (("base", base), ("smooth", smooth)):
        metrics += smoothness(protocol, name, measured.distances, measured.spreads)
        metrics.append(lpips_istd_of(protocol, name, measured.perceptual, network))
        metrics += _quality(protocol, name, measured.features, reference)
    metrics.append(istd_difference(protocol, base.distances, smooth.distances))
    metrics += _clip_difference(protocol, base.features, smooth.features)
    if reconstructed is not None:
        metrics += reconstruction.metrics(protocol, reconstructed, network)
    return metrics


def metric_key(metric: Metric) -> str:
    """Name of a metric in MLflow, for example ``evaluate/istd_smooth``."""
    name = re.sub(r"[^a-z0-9]+", "_", metric.name.lower().replace("fréchet distance", "frechet")).strip("_")
    return f"evaluate/{name}_{metric.model.replace('smooth - base', 'difference')}"


def _quality(
    protocol: Protocol, model: str, found: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]
) -> list[Metric]:
    stamp, seed = protocol.picture_stamp, protocol.seed
    own, *others = _parts(protocol)
    space = Space(features.NAME, features.stamp(protocol.image_size))
    metrics = quality(space, model, found[:, own], reference[:, own], stamp, seed)
    if protocol.inception:
        part = others.pop(0)
        metrics += quality(inception.space(protocol.inception), model, found[:, part], reference[:, part], stamp, seed)
    else:
        metrics.append(Metric(inception.FID, model, None, None, None, 0, note=inception.missing()))
    for embedder, part in zip(protocol.embedders, others, strict=True):
        metrics += embedded(embedder, model, found[:, part], reference[:, part], stamp, seed)
    return metrics + unavailable({embedder.kind for embedder in protocol.embedders}, model)


def _parts(protocol: Protocol) -> list[slice]:
    """Columns of each network, in the order in which painters put them side by side."""
    widths = [features.FeatureNetwork.dimensions]
    widths += [inception.InceptionNetwork.dimensions] if protocol.inception else []
    widths += [embedder.columns for embedder in protocol.embedders]
    ends = np.cumsum(widths).tolist()
    return [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]


def _clip_difference(
    protocol: Protocol, base: npt.NDArray[np.float32], smooth: npt.NDArray[np.float32]
) -> list[Metric]:
    """The paired difference of the CLIP score: same prompts, same noises."""
    parts = _parts(protocol)[-len(protocol.embedders) :] if protocol.embedders else []
    for embedder, part in zip(protocol.embedders, parts, strict=True):
        if embedder.kind == "clip":
            values = clip_scores(smooth[:, part]) - clip_scores(base[:, part])
            interval = istd.bootstrap(values, protocol.seed)
            name, stamp = f"CLIP score{embedder.label}", {**protocol.picture_stamp, **embedder.stamp, "n": len(values)}
            return [Metric(name, "smooth - base", interval.value, interval.low, interval.high, len(values), stamp)]
    return []


def summary_of(
    metrics: list[Metric], base: npt.NDArray[np.float64], smooth: npt.NDArray[np.float64], seed: int
) -> dict[str, float | int | str]:
    """The stage's table: values by name, intervals as text."""
    summary: dict[str, float | int | str] = {}
    for metric in metrics:
        name = f"{metric.name} {metric.model}"
        summary[name] = metric.text() if metric.value is None else round(metric.value, 4)
        if metric.name == ISTD and metric.low is not None and metric.high is not None:
            summary[f"{name} (95 %)"] = f"{metric.low:.4f} to {metric.high:.4f}"
    ratio = istd.deviation(base).mean() / istd.deviation(smooth).mean()
    summary["ISTD ratio base / smooth"] = round(float(ratio), 3)
    summary["prompts"] = len(base)
    summary["seed"] = seed
    return summary
