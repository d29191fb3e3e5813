"""A Stable Diffusion whose UNet is next to nothing, random weights: for tests of all that is around a step."""

from __future__ import annotations

from pathlib import Path

from smooth.models.pipeline import load_pipeline
from tests.numerics.networks import unet

LATENT_SHAPE = (4, 8, 8)


def write_pipeline(folder: Path) -> str:
    """Save the pipeline; return its folder."""
    pipeline = load_pipeline("builtin:tiny")
    width = pipeline.text_encoder.config.hidden_size
    pipeline.unet = unet((16, 32), layers=1, text_width=width)
    pipeline.save_pretrained(folder)
    return str(folder)
