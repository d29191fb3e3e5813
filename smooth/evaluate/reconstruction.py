"""How well real pictures come back from the noise they are inverted to (the paper's table 2): MSE, LPIPS, SSIM, PSNR.

Three ways: the VAE alone, which bounds the others; DDIM inversion; null-text inversion. All sample with the protocol's
steps and guidance scale, each picture with its caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smooth.diffusion.inversion import Walk, ddim_inversion, null_text_inversion, reconstruct
from smooth.evaluate import perceptual
from smooth.evaluate.istd import bootstrap
from smooth.evaluate.metric import Metric
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.real import Captioned
from smooth.models.pipeline import decode_latents, encode_pictures

VAE, DDIM, NULL_TEXT = WAYS = ("VAE alone", "DDIM inversion", "null-text inversion")
MSE, LPIPS, SSIM, PSNR = MEASURES = ("MSE", "LPIPS", "SSIM", "PSNR")
LEAST_MSE = 1e-10  # a picture that comes back to the byte has a PSNR of 100 dB


@dataclass(frozen=True)
class Reconstructed:
    """Pictures, and what came back of them by each way."""

    originals: npt.NDArray[np.uint8]
    """(R, H, W, 3)"""
    base: npt.NDArray[np.uint8]
    """(R, 3, H, W, 3), in the order of ``WAYS``"""
    smooth: npt.NDArray[np.uint8]


def paint(pipeline: Any, protocol: Protocol, real: Captioned, indices: range) -> npt.NDArray[np.uint8]:
    """(B, 3, H, W, 3) uint8: pictures ``indices`` by each of ``WAYS``.

    Raises:
        ValueError: the network is not one of Stable Diffusion (1 or 2).
    """
    walk = Walk(pipeline, protocol.steps)
    prompts = [real.captions[index] for index in indices]
    latents = encode_pictures(pipeline, real.pictures[indices.start : indices.stop])
    with torch.no_grad():
        text, null = pipeline.encode_prompt(prompts, pipeline.device, 1, True)
    inverted = ddim_inversion(walk, latents, text)
    plain = reconstruct(walk, inverted[-1], text, [null] * protocol.steps, protocol.guidance)
    fitted = null_text_inversion(
        walk, inverted, text, null, guidance=protocol.guidance, inner_steps=protocol.null_text_steps
    )
    better = reconstruct(walk, inverted[-1], text, fitted.embeddings, protocol.guidance)
    return np.stack([decode_latents(pipeline, found) for found in (latents, plain, better)], axis=1)


def metrics(protocol: Protocol, found: Reconstructed, network: PerceptualNetwork | None) -> list[Metric]:
    """Every measure of every way with its interval over the pictures, and paired differences.

    ``network`` is LPIPS's; without it the measure is listed as unavailable.
    """
    made: list[Metric] = []
    models = {"base": found.base, "smooth": found.smooth}
    values = {model: [measure(found.originals, way, network) for way in np.moveaxis(painted, 1, 0)]
              for model, painted in models.items()}  # fmt: skip
    for name in MEASURES:
        for index, way in enumerate(WAYS):
            both = {model: ways[index].get(name) for model, ways in values.items()}
            made += [_metric(protocol, name, way, model, each, network) for model, each in both.items()]
            if way != VAE and (base := both["base"]) is not None and (smooth := both["smooth"]) is not None:
                made.append(_metric(protocol, name, way, "smooth - base", smooth - base, network))
    return made


def measure(
    originals: npt.NDArray[np.uint8], painted: npt.NDArray[np.uint8], network: PerceptualNetwork | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """Each measure of each picture, (R,) float64, on pixels in [0, 1].

    SSIM is scikit-image's as Wang has it: a Gaussian window of deviation 1.5, without the rim, mean over the channels.

    Args:
        originals: (R, H, W, 3) uint8.
        painted: the same shape.
        network: for LPIPS.
    """
    from skimage.metrics import structural_similarity

    mse, ssim, lpips = [], [], []
    for original, again in zip(originals, painted, strict=True):
        a, b = original / 255.0, again / 255.0
        mse.append(np.square(a - b).mean())
        ssim.append(
            structural_similarity(  # type: ignore[no-untyped-call]
                a, b, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
        )
        if network is not None:
            lpips.append(float(network(_tensor(a[None]), _tensor(b[None]))))
    found = {MSE: np.asarray(mse), SSIM: np.asarray(ssim)}
    found[PSNR] = -10 * np.log10(np.maximum(found[MSE], LEAST_MSE))
    return found | ({LPIPS: np.asarray(lpips)} if network is not None else {})


def _metric(
    protocol: Protocol,
    name: str,
    way: str,
    model: str,
    values: npt.NDArray[np.float64] | None,
    network: PerceptualNetwork | None,
) -> Metric:
    called = f"{name} ({way})"
    if values is None:
        return Metric(called, model, None, None, None, 0, note=perceptual.missing())
    stamp = protocol.reconstruction_stamp | (network.stamp if network is not None and name == LPIPS else {})
    if len(values) < 2:
        return Metric(called, model, float(values.mean()), None, None, len(values), stamp)
    interval = bootstrap(values, protocol.seed)
    return Metric(called, model, interval.value, interval.low, interval.high, len(values), stamp)


def _tensor(pictures: npt.NDArray[np.float64]) -> Tensor:
    """Channels first."""
    return torch.tensor(pictures).permute(0, 3, 1, 2)
