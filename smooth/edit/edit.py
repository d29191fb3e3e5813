"""Prompt editing of real pictures: the prompt switch of Smooth Diffusion (arXiv 2312.04410, eq. 15), and SDEdit.

A picture is inverted with the prompt that describes it and sampled again: with that prompt while ``t > T r``, with the
target prompt afterwards. So r = 0 is the reconstruction, r = 1 the target prompt's picture from the inverted noise, and
the smaller r, the later the switch and the nearer to the source. SDEdit (arXiv 2108.01073), the baseline, adds noise to
the picture and denoises it with the target prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smooth.diffusion import sampler
from smooth.diffusion.inversion import Walk
from smooth.edit import Progress
from smooth.edit.generate import check, check_pictures
from smooth.edit.invert import Inversion
from smooth.models.pipeline import decode_latents

RATIOS = (0.6, 0.7, 0.8, 0.9)  # the paper's
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
Pictures = npt.NDArray[np.uint8]  # (B, H, W, 3)


def edit(
    pipeline: Any,
    inverted: Inversion,
    targets: Sequence[str],
    *,
    ratios: Sequence[float] = RATIOS,
    progress: Progress | None = None,
) -> npt.NDArray[np.uint8]:
    """Edit inverted pictures by the prompt switch, at several ratios at once.

    Args:
        pipeline: the one that they were inverted by.
        inverted: B pictures, of :func:`smooth.edit.invert.invert`, with the prompts of what they show.
        targets: B prompts of what they should show.
        ratios: R values of r in [0, 1].
        progress: see :data:`smooth.edit.Progress`.

    Returns:
        (R, B, H, W, 3) uint8.

    Raises:
        ValueError: not a prompt for each picture, or a ratio outside of [0, 1].
    """
    _check_prompts(len(inverted.prompts), targets)
    check(pipeline, inverted.steps, inverted.guidance, *targets)
    source, target, noise, nulls = (
        each.to(pipeline.device)
        for each in (
            inverted.found.text,
            sampler.embed(pipeline, targets)["prompt_embeds"],
            inverted.noise,
            inverted.found.nulls.expand(-1, len(targets), -1, -1),
        )
    )
    walk = Walk(pipeline, inverted.steps)
    found = switch(walk, noise, source, target, nulls, guidance=inverted.guidance, ratios=ratios, progress=progress)
    return np.stack([decode_latents(pipeline, edited) for edited in found])


@torch.no_grad()
def switch(
    walk: Walk,
    noise: Tensor,
    source: Tensor,
    target: Tensor,
    nulls: Sequence[Tensor] | Tensor,
    *,
    guidance: float,
    ratios: Sequence[float] = RATIOS,
    progress: Progress | None = None,
) -> Tensor:
    """Sample with the source's embedding and then with the target's, at several ratios as one batch (eq. 15).

    Args:
        walk: the steps.
        noise: (B, C, h, w), of the inversion.
        source: (B, L, D) embedding of each picture's own prompt.
        target: (B, L, D) of the prompt to switch to.
        nulls: (B, L, D) unconditional embedding of each step, from noise to picture.
        guidance: classifier-free guidance scale.
        ratios: R values of r in [0, 1].
        progress: called after each step.

    Returns:
        (R, B, C, h, w) clean latents.
    """
    _check_shares("ratios", ratios)
    moving = noise[None]  # of one ratio, while all of them still have the source
    for index, (timestep, null) in enumerate(zip(walk.timesteps, nulls, strict=True)):
        switched = [takes_target(walk, timestep, ratio) for ratio in ratios]
        if any(switched) and len(moving) == 1:
            moving = moving.expand(len(ratios), *noise.shape)
        text = torch.cat([target if late else source for late in switched[: len(moving)]])
        latents = moving.flatten(0, 1)
        output = walk.guided(latents, timestep, text, null.repeat(len(moving), 1, 1), guidance)
        moving = walk.forwards(latents, timestep, output).reshape(len(moving), *noise.shape)
        if progress is not None:
            progress(index + 1, len(walk.timesteps))
    return moving.expand(len(ratios), *noise.shape)


def takes_target(walk: Walk, timestep: int, ratio: float) -> bool:
    """Whether ``t <= T r``. The paper counts t from 1 and diffusers from 0, so that r = 0 never switches."""
    return timestep + 1 <= walk.training_steps * ratio


def sdedit(
    pipeline: Any,
    pictures: Pictures,
    targets: Sequence[str],
    *,
    steps: int = 50,
    guidance: float = 7.5,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pictures:
    """SDEdit by diffusers' own image-to-image pipeline, at several strengths.

    Args:
        pipeline: a ``StableDiffusionPipeline`` with a DDIM scheduler.
        pictures: (B, H, W, 3) uint8.
        targets: B prompts of what they should show.
        steps: of DDIM from pure noise; a strength of s takes the last s of them.
        guidance: classifier-free guidance scale.
        strengths: S shares of the noise in (0, 1].
        seed: of the noise, which is the same for every picture and strength.
        progress: called after each step.

    Returns:
        (S, B, H, W, 3) uint8.

    Raises:
        ValueError: numbers of prompts and pictures differ, or a strength that leaves no step.
    """
    from diffusers import StableDiffusionImg2ImgPipeline

    check_pictures(pipeline, pictures)
    _check_prompts(len(pictures), targets)
    check(pipeline, steps, guidance, *targets)
    lengths = _lengths(steps, strengths)
    painter = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    painter.set_progress_bar_config(disable=True)
    made, before = [], 0

    def after_step(_: Any, index: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if progress is not None:
            progress(before + index + 1, sum(lengths))
        return tensors

    for strength, length in zip(strengths, lengths, strict=True):
        painted = painter(
            prompt=list(targets),
            image=pictures / 255.0,
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for _ in pictures],
            output_type="np",
            callback_on_step_end=after_step,
        ).images
        made.append((painted * 255).round().astype(np.uint8))
        before += length
    return np.stack(made)


def _lengths(steps: int, strengths: Sequence[float]) -> list[int]:
    """The steps that SDEdit takes at each strength, as diffusers counts them."""
    _check_shares("strengths", strengths)
    lengths = [int(steps * strength) for strength in strengths]
    if 0 in lengths:
        raise ValueError(f"strengths={list(strengths)} with steps={steps}: give each at least 1/steps, for one step")
    return lengths


def _check_prompts(pictures: int, prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or len(prompts) != pictures:
        told = "one text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(f"{told} for {pictures} pictures: give a list of one prompt for each")


def _check_shares(name: str, values: Sequence[float]) -> None:
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"{name}={list(values)}: give one or more from 0 to 1")
