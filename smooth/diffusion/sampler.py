"""Deterministic sampling: noises that are functions of (seed, stream, index), their spherical interpolation, DDIM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PARALLEL_RADIANS = 1e-4  # below this angle the sines of slerp cancel and the straight line is as exact


def noise(seed: int, stream: str, index: int, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise of ``shape`` (float32, CPU), the same on every machine for the same arguments."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(tuple(shape), generator=generator)


def slerp(start: torch.Tensor, end: torch.Tensor, ratio: float) -> torch.Tensor:
    """Spherical interpolation of two noises, each taken as one vector: start at ratio 0, end at ratio 1.

    Follows the authors' use on Gaussian noise: the weights ``sin((1-r) w) / sin w`` and ``sin(r w) / sin w`` come
    from the angle ``w`` between the two, their lengths are not normalized. The angle is taken by atan2, which
    stays exact where arccos of a rounded cosine does not.

    Raises:
        ValueError: shapes differ, a noise is zero, or the two are opposite (then there is no one way).
    """
    if start.shape != end.shape:
        raise ValueError(f"slerp needs two noises of one shape, got {tuple(start.shape)} and {tuple(end.shape)}")
    a, b = start.double().flatten(), end.double().flatten()
    if not (a.norm() > 0 and b.norm() > 0):
        raise ValueError("slerp of a zero noise: it has no direction")
    unit_a, unit_b = a / a.norm(), b / b.norm()
    angle = 2 * torch.atan2((unit_a - unit_b).norm(), (unit_a + unit_b).norm())
    if angle > torch.pi - PARALLEL_RADIANS:
        raise ValueError("slerp of opposite noises: every direction between them is equally short; draw another seed")
    if angle < PARALLEL_RADIANS:
        mixed = (1 - ratio) * a + ratio * b
    else:
        mixed = (torch.sin((1 - ratio) * angle) * a + torch.sin(ratio * angle) * b) / torch.sin(angle)
    return mixed.reshape(start.shape).to(start.dtype)


def latent_shape(pipeline: Any, image_size: int) -> tuple[int, int, int]:
    """Shape (C, h, w) of a Stable Diffusion pipeline's noise for square pictures of ``image_size`` pixels.

    Raises:
        ValueError: the size is no multiple of the VAE's downsampling.
    """
    factor = int(pipeline.vae_scale_factor)
    if image_size % factor:
        raise ValueError(f"image_size={image_size} is no multiple of the VAE's downsampling {factor}")
    return int(pipeline.unet.config.in_channels), image_size // factor, image_size // factor


@torch.no_grad()
def embed(pipeline: Any, prompts: Sequence[str], negative: str = "") -> dict[str, torch.Tensor]:
    """What the network is told of ``prompts``, as keyword arguments of the pipeline: (B, L, D) and, in XL, (B, D).

    Args:
        pipeline: a ``StableDiffusionPipeline``, or one of XL.
        prompts: B texts.
        negative: what guidance leads away from; the empty prompt, or what the pipeline has for it, if "".
    """
    asked = {"device": pipeline.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    against = [negative] * len(prompts) if negative else None
    found = pipeline.encode_prompt(prompt=list(prompts), negative_prompt=against, **asked)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return dict(zip(names, found, strict=False))  # two in Stable Diffusion 1 and 2


def sample(
    pipeline: Any,
    prompts: Sequence[str] | Mapping[str, torch.Tensor],
    noises: torch.Tensor,
    *,
    steps: int,
    guidance: float,
    each_step: Callable[[], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Pictures of ``prompts`` from ``noises`` by the pipeline's own deterministic DDIM.

    Args:
        pipeline: a ``StableDiffusionPipeline`` with a DDIM scheduler, as ``load_pipeline`` gives it.
        prompts: B texts, or what :func:`embed` makes of them.
        noises: (B, C, h, w), unit variance.
        steps: DDIM steps, eta 0.
        guidance: classifier-free guidance scale; both halves run as one batch, and at 1 or less only one does.
        each_step: called after each step; what it raises ends the sampling.

    Returns:
        (B, H, W, 3) uint8, 0 to 255.
    """
    pictures = sample_unrounded(pipeline, prompts, noises, steps=steps, guidance=guidance, each_step=each_step)
    return (pictures * 255).round().astype("uint8")


@torch.inference_mode()
def sample_unrounded(
    pipeline: Any,
    prompts: Sequence[str] | Mapping[str, torch.Tensor],
    noises: torch.Tensor,
    *,
    steps: int,
    guidance: float,
    each_step: Callable[[], None] | None = None,
) -> npt.NDArray[np.float32]:
    """The pictures of :func:`sample` before they become bytes: (B, H, W, 3) float32 in [0, 1]."""
    latents = noises.to(device=pipeline.device, dtype=pipeline.dtype)
    height, width = (int(pipeline.vae_scale_factor) * side for side in noises.shape[-2:])
    told = prompts if isinstance(prompts, Mapping) else {"prompt": list(prompts)}

    def after(_pipeline: Any, _step: int, _timestep: int, kept: dict[str, Any]) -> dict[str, Any]:
        if each_step is not None:
            each_step()
        return kept

    pictures: npt.NDArray[np.float32] = pipeline(
        **told,
        latents=latents,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        eta=0.0,
        output_type="np",
        callback_on_step_end=after,
    ).images
    return pictures
