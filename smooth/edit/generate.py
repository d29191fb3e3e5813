"""Text to image: a picture is a function of model, prompt, seed and settings alone, whatever is made beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smooth.diffusion import sampler
from smooth.edit import LARGEST_SEED, LONGEST_PROMPT, Progress


def generate(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    negative: str = "",
    size: int | None = None,
    progress: Progress | None = None,
) -> npt.NDArray[np.uint8]:
    """One picture for each prompt with its seed, sampled one by one; the registered model gives the same ones.

    Args:
        pipeline: of :meth:`smooth.edit.model.EditModel.at`.
        prompts: B texts.
        seeds: B numbers.
        steps: DDIM steps.
        guidance: classifier-free guidance scale; at 1 or less the prompt alone.
        negative: what guidance leads away from.
        size: side in pixels; the model's own if None.
        progress: see :data:`smooth.edit.Progress`.

    Returns:
        (B, H, W, 3) uint8.

    Raises:
        ValueError: settings that can't be.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts with {len(seeds)} seeds; give each prompt its own seed")
    check(pipeline, steps, guidance, *prompts, negative)
    done, total = 0, steps * len(prompts)

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    pictures = [
        sampler.sample(
            pipeline,
            sampler.embed(pipeline, [prompt], negative),
            noise(pipeline, seed, size)[None],
            steps=steps,
            guidance=guidance,
            each_step=step,
        )
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return np.concatenate(pictures)


def noise(pipeline: Any, seed: int, size: int | None = None) -> Tensor:
    """The (C, h, w) noise of a seed as diffusers draws it from a generator of the CPU: the same on every device.

    Raises:
        ValueError: a seed that is no number of 63 bits, or a size that the VAE does not divide.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed={seed}: give a number from 0 to {LARGEST_SEED}")
    shape = sampler.latent_shape(pipeline, size or image_size(pipeline))
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed), dtype=pipeline.dtype)[0]


def image_size(pipeline: Any) -> int:
    """Side in pixels of the square pictures that the model was made for."""
    return int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)


def check(pipeline: Any, steps: int, guidance: float, *texts: str) -> None:
    """Refuse settings that can't be, before any work is done.

    Raises:
        ValueError: says which, and what can be.
    """
    most = int(pipeline.scheduler.config.num_train_timesteps)
    if not 1 <= steps <= most:
        raise ValueError(f"steps={steps}: give 1 to {most}, as the schedule has")
    if not 0 <= guidance <= 100:  # NaN is refused, too
        raise ValueError(f"guidance={guidance:g}: give a scale from 0 to 100; 1 is none")
    for text in texts:
        if len(text) > LONGEST_PROMPT:
            raise ValueError(f"a prompt of {len(text)} characters; give at most {LONGEST_PROMPT}")


def check_pictures(pipeline: Any, pictures: npt.NDArray[np.uint8]) -> None:
    """Refuse what the VAE can't take.

    Raises:
        ValueError: another shape or dtype than (B, H, W, 3) uint8, or sides that the VAE does not divide.
    """
    factor, shape = int(pipeline.vae_scale_factor), pictures.shape
    if pictures.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"pictures of {pictures.dtype} and shape {shape}; give uint8 (B, H, W, 3) with sides that are multiples of "
            f"{factor}, best {image_size(pipeline)}"
        )
