"""`smooth pretrain`: corpus, autoencoder, denoiser, then the pipeline folder with its model card."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from smooth.pretrain.architecture import IMAGE_SIZE
from smooth.pretrain.autoencoder import held_out_psnr, train_autoencoder
from smooth.pretrain.card import write_card
from smooth.pretrain.corpus import load_corpus
from smooth.pretrain.denoiser import train_denoiser
from smooth.pretrain.runner import Budget

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SAMPLE_PROMPTS = (
    "grinning face", "red apple", "cat face", "rocket", "house with garden", "sunflower",
    "woman firefighter medium skin tone", "man artist dark skin tone", "thumbs up light skin tone", "bicycle",
    "pizza", "flag of France", "elephant", "umbrella with rain drops", "violin", "octopus",
    "snowman", "birthday cake", "soccer ball", "books", "key", "penguin", "face with tears of joy", "locomotive",
    "cactus", "crown", "fire", "ghost", "hot beverage", "red heart", "dog face", "rainbow",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """All that decides the result, beside the code."""

    styles: int
    autoencoder: Budget
    denoiser: Budget


def pretrain(out: Path, work: Path, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Train the built-in base and write it to ``out`` as a ``StableDiffusionPipeline`` folder in half precision.

    Everything in between lies under ``work``; a second call goes on where the first stopped.

    Returns:
        Held-out PSNR of the autoencoder in dB and the seconds each stage took.
    """
    torch.set_float32_matmul_precision("high")
    corpus = load_corpus(work, recipe.styles, held_out=False)
    vae, vae_seconds = train_autoencoder(corpus, recipe.autoencoder, work, device)
    psnr = held_out_psnr(vae, load_corpus(work, 2, held_out=True), device)
    print(f"autoencoder: {psnr:.2f} dB on held-out drawings, {vae_seconds:.0f} s", flush=True)

    def draw_samples(pipeline: StableDiffusionPipeline, step: int) -> None:
        sample_grid(pipeline, device).save(work / f"samples-{step:06d}.png")
        save_half(copy.deepcopy(pipeline), work / "snapshot")  # to be looked at; training goes on in full precision

    pipeline, denoiser_seconds = train_denoiser(vae, corpus, recipe.denoiser, work, device, draw_samples)
    out.mkdir(parents=True, exist_ok=True)
    sample_grid(pipeline, device).save(out / "samples.png", optimize=True)
    facts = {
        "psnr_db": psnr,
        "autoencoder_seconds": vae_seconds,
        "denoiser_seconds": denoiser_seconds,
        "drawings": float(len(corpus.drawings)),
    }
    save_half(pipeline, out)
    write_card(out, recipe, facts, device)
    return facts


def save_half(pipeline: StableDiffusionPipeline, out: Path) -> None:
    """Save as safetensors in half precision; the text encoder's config still asks for float32.

    transformers loads in the dtype that a config names, diffusers in float32: so a plain
    ``from_pretrained`` gives one dtype throughout.
    """
    pipeline.to("cpu").to(dtype=torch.float16)
    pipeline.save_pretrained(out, safe_serialization=True)
    path = out / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


def sample_grid(pipeline: StableDiffusionPipeline, device: torch.device, columns: int = 8) -> Image.Image:
    """Pictures of :data:`SAMPLE_PROMPTS`, 25 DDIM steps, guidance 3, fixed noise."""
    pipeline.to(device)
    shape = (len(SAMPLE_PROMPTS), pipeline.unet.config.in_channels, *(2 * [IMAGE_SIZE // 4]))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(device)
    images = pipeline(
        list(SAMPLE_PROMPTS), latents=noise, num_inference_steps=25, guidance_scale=3.0, output_type="np"
    ).images
    cells = (images * 255).round().astype(np.uint8)
    rows = [np.concatenate(list(cells[start : start + columns]), axis=1) for start in range(0, len(cells), columns)]
    return Image.fromarray(np.concatenate(rows, axis=0))
