"""Perceptual path lengths of an evaluation: the protocol's paths by whatever pipeline is judged, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smooth.diffusion import sampler
from smooth.evaluate import path_length, perceptual
from smooth.evaluate.istd import bootstrap
from smooth.evaluate.metric import Metric
from smooth.evaluate.path_length import Distance, squared_pixels
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.protocol import Protocol

PIXELS, LPIPS = NAMES = ("PPL (pixels)", "PPL (LPIPS)")

Lengths = Sequence[npt.NDArray[np.float64]]
"""(K,) of all paths by pixels and, where its network is there, by LPIPS"""


def kept_under(network: PerceptualNetwork | None) -> list[str]:
    """Folders of finished blocks, one a distance; another step or another network has another."""
    by_network = [] if network is None else [f"alexnet-{network.sha256[:16]}"]
    return [f"ppl-{path_length.EPSILON:g}-{distance}" for distance in ("pixels", *by_network)]


def measure(
    pipeline: Any, protocol: Protocol, indices: range, network: PerceptualNetwork | None, numbers: Sequence[int]
) -> list[npt.NDArray[np.float64]]:
    """Lengths (B,) of paths ``indices`` by the distances ``numbers``: 0 is pixels, 1 LPIPS by ``network``.

    The noises are float64 until the sampler takes them, the pictures float32: on a GPU without TF32, whose rounding
    is larger than the step.
    """
    shape = sampler.latent_shape(pipeline, protocol.image_size)
    starts, ends = (
        torch.stack([sampler.noise(protocol.seed, f"path {end}", index, shape) for index in indices]).double()
        for end in ("start", "end")
    )

    def generate(paths: Sequence[int], noises: torch.Tensor) -> torch.Tensor:
        prompts = [protocol.path_prompt(path) for path in paths]
        steps, guidance = protocol.steps, protocol.guidance
        pictures = sampler.sample_unrounded(pipeline, prompts, noises, steps=steps, guidance=guidance)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    distances: list[Distance] = [squared_pixels, *([] if network is None else [network])]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return path_length.lengths(
            generate, [distances[number] for number in numbers], indices, starts, ends, seed=protocol.seed
        )


def metrics(protocol: Protocol, base: Lengths, smooth: Lengths, network: PerceptualNetwork | None) -> list[Metric]:
    """PPL of both models and the paired difference, over the paths that the percentiles keep of both, by each distance.

    ``network`` is LPIPS's; without it that PPL is listed as unavailable.
    """
    pixels: dict[str, str | int | float] = {"distance": "squared L2 over all pixels", "pixel_scale": "[0, 1]"}
    made = _metrics(PIXELS, protocol.path_stamp | pixels, base[0], smooth[0], protocol.seed)
    if network is None:
        missing = perceptual.missing()
        return made + [Metric(LPIPS, model, None, None, None, 0, note=missing) for model in ("base", "smooth")]
    perceived = {name: value for name, value in network.stamp.items() if name != "std"}  # that is ISTD's
    return made + _metrics(LPIPS, protocol.path_stamp | perceived, base[1], smooth[1], protocol.seed)


def _metrics(
    name: str,
    stamp: dict[str, str | int | float],
    base: npt.NDArray[np.float64],
    smooth: npt.NDArray[np.float64],
    seed: int,
) -> list[Metric]:
    stamped = stamp | path_length.stamp() | {"paths": len(base), "precision": "float32 of float64 noises"}
    kept = {"base": path_length.within(base), "smooth": path_length.within(smooth)}
    kept["smooth - base"] = kept["base"] & kept["smooth"]
    values = {"base": base, "smooth": smooth, "smooth - base": smooth - base}
    made = []
    for model, those in kept.items():
        found = bootstrap(values[model][those], seed)
        made.append(Metric(name, model, found.value, found.low, found.high, int(those.sum()), stamped))
    return made
