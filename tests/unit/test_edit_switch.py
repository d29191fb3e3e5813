"""The prompt switch against a plain loop of diffusers' scheduler, and SDEdit against diffusers' own pipeline."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import Tensor

from smooth.data.openmoji import Style, drawings, render
from smooth.diffusion import inversion
from smooth.diffusion.inversion import Walk, ddim_inversion
from smooth.edit.edit import edit, sdedit, switch
from smooth.edit.invert import invert, reconstruct
from smooth.models.pipeline import load_pipeline

STEPS, GUIDANCE = 4, 3.0
SOURCES, TARGETS = ["red heart", "waving hand light skin tone"], ["blue heart", "waving hand dark skin tone"]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline("builtin:tiny")


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    named = {drawing.caption: drawing for drawing in drawings()}
    return np.stack([render(named[word], 64, Style.draw(named[word].key, 2000)) for word in SOURCES])


@pytest.fixture(scope="module")
def texts(pipeline: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of the first source, its target and the empty prompt."""
    source, null = pipeline.encode_prompt(SOURCES[:1], "cpu", 1, True)
    return source, pipeline.encode_prompt(TARGETS[:1], "cpu", 1, True)[0], null


@pytest.fixture(scope="module")
def noise(pipeline: Any, texts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    clean = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.7
    return ddim_inversion(Walk(pipeline, STEPS), clean, texts[0])[-1]


@pytest.fixture(scope="module")
def exact(pipeline: Any) -> Any:
    """The network in double precision: in single, its rounding alone comes to 1e-5."""
    return SimpleNamespace(unet=copy.deepcopy(pipeline.unet).double(), scheduler=pipeline.scheduler)


@torch.no_grad()
def by_diffusers(pipeline: Any, noise: Tensor, texts: tuple[Tensor, Tensor, Tensor], late: list[bool]) -> Tensor:
    """The scheduler's own steps, each with the prompt that it should have."""
    source, target, null = texts
    pipeline.scheduler.set_timesteps(STEPS)
    latents = noise
    for timestep, switched in zip(pipeline.scheduler.timesteps, late, strict=True):
        text = torch.cat([null, target if switched else source])
        plain, told = pipeline.unet(latents.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=text).sample.chunk(2)
        output = plain + GUIDANCE * (told - plain)
        latents = pipeline.scheduler.step(output, timestep, latents, eta=0.0).prev_sample
    return latents


@pytest.mark.parametrize(
    ("ratio", "late"),
    [  # of the timesteps 751, 501, 251 and 1
        (0.0, [False] * 4),
        (0.1, [False, False, False, True]),
        (0.6, [False, True, True, True]),
        (1.0, [True] * 4),
    ],
)
def test_each_step_has_the_prompt_of_equation_15(
    exact: Any, noise: Tensor, texts: tuple[Tensor, Tensor, Tensor], ratio: float, late: list[bool]
) -> None:
    noise, source, target, null = (each.double() for each in (noise, *texts))
    (found,) = switch(Walk(exact, STEPS), noise, source, target, [null] * STEPS, guidance=GUIDANCE, ratios=[ratio])
    expected = by_diffusers(exact, noise, (source, target, null), late)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_several_ratios_are_what_each_is_alone_and_0_is_the_reconstruction(
    pipeline: Any, noise: Tensor, texts: tuple[Tensor, Tensor, Tensor]
) -> None:
    source, target, null = texts
    walk, nulls, ratios = Walk(pipeline, STEPS), [null] * STEPS, [0.3, 0.0, 0.9]
    seen: list[tuple[int, int]] = []
    found = switch(
        walk,
        noise,
        source,
        target,
        nulls,
        guidance=GUIDANCE,
        ratios=ratios,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(step, STEPS) for step in range(1, STEPS + 1)]
    for ratio, latents in zip(ratios, found, strict=True):
        (alone,) = switch(walk, noise, source, target, nulls, guidance=GUIDANCE, ratios=[ratio])
        torch.testing.assert_close(latents, alone, rtol=1e-5, atol=1e-5)
    expected = inversion.reconstruct(walk, noise, source, nulls, GUIDANCE)
    torch.testing.assert_close(found[1], expected, rtol=1e-5, atol=1e-5)
    unchanged = switch(walk, noise, source, target, nulls, guidance=GUIDANCE, ratios=[0.0, 0.0])
    assert unchanged.shape == (2, *noise.shape)


def test_an_edit_goes_from_the_source_towards_the_target(pipeline: Any, pictures: np.ndarray) -> None:
    """The heart's middle is red in the source; the switch makes it the bluer, the earlier it comes."""
    inverted = invert(pipeline, pictures[:1], SOURCES[:1], steps=6, guidance=GUIDANCE, null_text_steps=1)
    found = edit(pipeline, inverted, TARGETS[:1], ratios=(0.0, 0.5, 1.0))
    assert found.shape == (3, 1, 64, 64, 3)
    assert found.dtype == np.uint8
    assert (found[0] == reconstruct(pipeline, inverted)).mean() > 0.99
    red, _, blue = np.moveaxis(found[:, 0, 28:36, 28:36].astype(float).mean(axis=(1, 2)), 1, 0)
    assert (np.diff(red - blue) < 0).all()
    assert red[0] > blue[0] + 80
    assert blue[2] > red[2] + 40


def test_embeddings_that_pictures_share_are_taken(pipeline: Any, pictures: np.ndarray) -> None:
    inverted = invert(pipeline, pictures, SOURCES, steps=2, guidance=GUIDANCE, null_text_steps=1, shared=True)
    assert inverted.found.nulls.shape[1] == 1
    found = edit(pipeline, inverted, TARGETS, ratios=[0.0])[0]
    assert np.abs(found.astype(int) - reconstruct(pipeline, inverted)).max() <= 1


def test_sdedit_is_diffusers_own(pipeline: Any, pictures: np.ndarray) -> None:
    seen: list[tuple[int, int]] = []
    found = sdedit(
        pipeline,
        pictures,
        TARGETS,
        steps=5,
        guidance=GUIDANCE,
        strengths=(0.4, 0.8),
        seed=7,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found.shape == (2, *pictures.shape)
    assert seen == [(step, 6) for step in range(1, 7)]
    theirs = StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    theirs.set_progress_bar_config(disable=True)
    for index, word in enumerate(TARGETS):
        expected = theirs(
            word,
            pictures[index] / 255,
            strength=0.8,
            num_inference_steps=5,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(7),
            output_type="np",
        ).images[0]
        assert np.abs(found[1, index] / 255 - expected).max() <= 1 / 255


def test_what_progress_raises_ends_the_work(pipeline: Any, pictures: np.ndarray) -> None:
    class CancelledError(Exception):
        pass

    calls = []

    def cancel(done: int, total: int) -> None:
        calls.append(done)
        if done == 2:
            raise CancelledError

    inverted = invert(pipeline, pictures, SOURCES, steps=2, guidance=1)
    with pytest.raises(CancelledError):
        edit(pipeline, inverted, TARGETS, progress=cancel)
    with pytest.raises(CancelledError):
        sdedit(pipeline, pictures, TARGETS, steps=5, progress=cancel)
    assert calls == [1, 2, 1, 2]


def test_what_can_not_be_edited_is_refused(pipeline: Any, pictures: np.ndarray) -> None:
    inverted = invert(pipeline, pictures, SOURCES, steps=1, guidance=1)
    with pytest.raises(ValueError, match="1 prompts for 2 pictures"):
        edit(pipeline, inverted, TARGETS[:1])
    with pytest.raises(ValueError, match="one text for 2 pictures"):
        sdedit(pipeline, pictures, "ab")
    with pytest.raises(ValueError, match=r"ratios=\[1.5\]"):
        edit(pipeline, inverted, TARGETS, ratios=[1.5])
    with pytest.raises(ValueError, match="for one step"):
        sdedit(pipeline, pictures, TARGETS, steps=5, strengths=[0.1])
    with pytest.raises(ValueError, match="multiples of 4"):
        sdedit(pipeline, pictures[:, :63], TARGETS)
