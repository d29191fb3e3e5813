"""Load a Stable Diffusion (or XL) pipeline by path, hub id or built-in name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor

from smooth.config import resolve_model

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class ModelError(ValueError):
    """The model can't be loaded; the message says which and what to do."""


def load_pipeline(
    base: str,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    lora: str | Path | None = None,
) -> StableDiffusionPipeline:
    """Load a text-to-image pipeline with a DDIM scheduler, no safety checker and no progress bar.

    Args:
        base: ``builtin:tiny``, a diffusers folder or a hub id.
        revision: hub revision of ``base``.
        device: where the modules go.
        dtype: of all weights; the built-in base is stored in half precision.
        lora: folder or file of ``pytorch_lora_weights.safetensors`` to apply.

    Raises:
        ModelError: the base or the adapter can't be read. Only safetensors are, never pickles.
    """
    from diffusers import DDIMScheduler

    pipeline: Any = read_pipeline(base, revision=revision, dtype=dtype)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if lora is not None:
        if not Path(lora).exists():
            raise ModelError(f"no LoRA weights at {lora}")
        try:
            pipeline.load_lora_weights(str(lora), use_safetensors=True)
        except SafetensorError as error:
            raise ModelError(f"{lora} can't be read: {error}; it is broken or cut short: get it again") from error
    for name in ("unet", "vae", *text_encoders(pipeline)):
        getattr(pipeline, name).requires_grad_(False).eval()
    return cast("StableDiffusionPipeline", pipeline)


def read_pipeline(
    base: str, *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """Load a text-to-image pipeline with the scheduler that it was saved with, no safety checker.

    Raises:
        ModelError: the base can't be read. Only safetensors are, never pickles.
    """
    from diffusers import DiffusionPipeline

    folder = resolve_model(base)
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(
            folder, revision=revision, dtype=dtype, use_safetensors=True, safety_checker=None
        )
    except OSError as error:
        raise ModelError(
            f"model.base={base} can't be loaded: {error}. Give a diffusers folder with safetensors, or a hub id "
            "on a machine that reaches the hub (or has it in its cache: HF_HOME)"
        ) from error
    if missing := [name for name in ("unet", "vae", "text_encoder") if getattr(pipeline, name, None) is None]:
        raise ModelError(
            f"model.base={base} is a {type(pipeline).__name__} without {' and '.join(missing)}; give a Stable "
            "Diffusion or Stable Diffusion XL pipeline"
        )
    return cast("StableDiffusionPipeline", pipeline)


def text_encoders(pipeline: Any) -> list[str]:
    """Names of a pipeline's text encoders: one, or two in XL."""
    return [name for name in ("text_encoder", "text_encoder_2") if getattr(pipeline, name, None) is not None]


@torch.no_grad()
def encode_pictures(pipeline: Any, pictures: npt.NDArray[np.uint8]) -> Tensor:
    """Latents (B, C, h, w) of pictures (B, H, W, 3): posterior means, scaled as the network sees them."""
    x = torch.tensor(pictures / 255.0).permute(0, 3, 1, 2)
    x = (2 * x - 1).to(device=pipeline.device, dtype=pipeline.dtype)
    found: Tensor = pipeline.vae.encode(x).latent_dist.mode() * pipeline.vae.config.scaling_factor
    return found


@torch.no_grad()
def decode_latents(pipeline: Any, latents: Tensor) -> npt.NDArray[np.uint8]:
    """Pictures (B, H, W, 3) of latents (B, C, h, w) as :func:`encode_pictures` gives them."""
    x = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pictures = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return np.asarray((pictures * 255).round().astype(np.uint8))
