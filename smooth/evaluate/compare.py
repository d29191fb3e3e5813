"""From what was measured of two models to metrics with intervals, and to the table that people read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol as Typing

import numpy as np
import numpy.typing as npt

from smooth.evaluate import istd, paths, reconstruction
from smooth.evaluate.metric import Metric
from smooth.evaluate.networks import EFFICIENTNET, METRICS
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.quality import clip_difference, quality, unavailable
from smooth.evaluate.reconstruction import Reconstructed
from smooth.evaluate.smoothness import ISTD as ISTD
from smooth.evaluate.smoothness import istd_difference, lpips_istd_of, smoothness

KID = f"KID ({EFFICIENTNET}) x1000"


Features = Sequence[npt.NDArray[np.float32]]
"""(N, D) of each of the protocol's networks, in their order"""


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
    def path_lengths(self) -> paths.Lengths:
        """(K,) by each distance."""

    @property
    def features(self) -> Features:
        """Of single pictures."""


def metrics_of(
    protocol: Protocol,
    base: Measured,
    smooth: Measured,
    reference: Features,
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
    if protocol.path_lengths:
        metrics += paths.metrics(protocol, base.path_lengths, smooth.path_lengths, network)
    for each, ours, theirs in zip(protocol.networks, smooth.features, base.features, strict=True):
        if each.kind == "clip":
            metrics.append(clip_difference(each, theirs, ours, protocol.picture_stamp, protocol.seed))
    if reconstructed is not None:
        metrics += reconstruction.metrics(protocol, reconstructed, network)
    return metrics


def metric_key(metric: Metric) -> str:
    """Name of a metric in MLflow, for example ``evaluate/istd_smooth``."""
    name = re.sub(r"[^a-z0-9]+", "_", metric.name.lower().replace("fréchet distance", "frechet")).strip("_")
    return f"evaluate/{name}_{metric.model.replace('smooth - base', 'difference')}"


def _quality(protocol: Protocol, model: str, found: Features, reference: Features) -> list[Metric]:
    stamp, seed = protocol.picture_stamp, protocol.seed
    metrics = []
    for network, ours, theirs in zip(protocol.networks, found, reference, strict=True):
        metrics += quality(network, model, ours, theirs, stamp, seed)
    at_hand = {network.kind for network in protocol.networks}
    return metrics + [metric for kind in METRICS if kind not in at_hand for metric in unavailable(kind, model)]


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
