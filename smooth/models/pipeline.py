"""Load a Stable Diffusion pipeline by path, hub id or built-in name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

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
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    folder = resolve_model(base)
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, revision=revision, dtype=dtype, use_safetensors=True, safety_checker=None
        )
    except OSError as error:
        raise ModelError(
            f"model.base={base} can't be loaded: {error}. Give a diffusers folder with safetensors, or a hub id "
            "on a machine that reaches the hub (or has it in its cache: HF_HOME)"
        ) from error
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if lora is not None:
        if not Path(lora).exists():
            raise ModelError(f"no LoRA weights at {lora}")
        pipeline.load_lora_weights(str(lora))
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False).eval()
    return pipeline
