"""ISTD and its kin as metrics: distances of neighbouring frames become values with intervals and stamps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from smooth.evaluate import diversity, istd, perceptual
from smooth.evaluate.metric import Metric
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.protocol import Protocol

ISTD = "ISTD"
LPIPS_ISTD = "LPIPS-ISTD"
DISTANCE = "neighbour distance"
COEFFICIENT = "variation coefficient"
DIVERSITY = "sample diversity"


def stamp(protocol: Protocol) -> dict[str, str | int | float]:
    """What a value measured on the protocol's interpolations depends on besides the model."""
    return {**protocol.interpolation_stamp, **istd.STAMP}


def per_prompt(protocol: Protocol, name: str, model: str, values: npt.NDArray[np.float64]) -> Metric:
    """The mean of one value a prompt, (P,), with its interval over the prompts."""
    found = istd.bootstrap(values, protocol.seed)
    return Metric(name, model, found.value, found.low, found.high, values.size, stamp(protocol))


def istd_of(protocol: Protocol, model: str, distances: npt.NDArray[np.float64]) -> Metric:
    """ISTD of distances (P, F - 1)."""
    return per_prompt(protocol, ISTD, model, istd.deviation(distances))


def lpips_istd_of(
    protocol: Protocol, model: str, distances: npt.NDArray[np.float64] | None, network: PerceptualNetwork | None
) -> Metric:
    """ISTD by LPIPS distances (P, F - 1) in place of pixels'; unavailable without its network."""
    if distances is None or network is None:
        return Metric(LPIPS_ISTD, model, None, None, None, 0, note=perceptual.missing())
    found = istd.bootstrap(istd.deviation(distances), protocol.seed)
    stamped = {**protocol.interpolation_stamp, **network.stamp}
    return Metric(LPIPS_ISTD, model, found.value, found.low, found.high, len(distances), stamped)


def istd_difference(protocol: Protocol, base: npt.NDArray[np.float64], smooth: npt.NDArray[np.float64]) -> Metric:
    """The paired difference of two models' ISTD, of distances (P, F - 1) each."""
    return per_prompt(protocol, ISTD, "smooth - base", istd.deviation(smooth) - istd.deviation(base))


def diversity_of(protocol: Protocol, model: str, spreads: npt.NDArray[np.float64]) -> Metric:
    """Sample diversity of spreads (P,); unavailable below three prompts."""
    stamped = {**protocol.interpolation_stamp, **diversity.STAMP}
    try:
        found = diversity.diversity(spreads)
    except ValueError as error:
        return Metric(DIVERSITY, model, None, None, None, len(spreads), stamped, note=str(error))
    return Metric(DIVERSITY, model, found.value, found.low, found.high, len(spreads), stamped)


def smoothness(
    protocol: Protocol, model: str, distances: npt.NDArray[np.float64], spreads: npt.NDArray[np.float64]
) -> list[Metric]:
    """All that is told of distances (P, F - 1) and spreads (P,) of a model's interpolations."""
    return [
        istd_of(protocol, model, distances),
        per_prompt(protocol, DISTANCE, model, distances.mean(axis=1)),
        per_prompt(protocol, COEFFICIENT, model, istd.variation_coefficient(distances)),
        diversity_of(protocol, model, spreads),
    ]
