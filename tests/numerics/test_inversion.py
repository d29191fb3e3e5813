"""Inversion against diffusers' own samplers, a closed form, and what its papers promise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from smooth.data import openmoji
from smooth.data.openmoji import Style
from smooth.diffusion.inversion import Walk, ddim_inversion, null_text_inversion, reconstruct
from smooth.models.pipeline import encode_pictures, load_pipeline

PROMPTS = ["red heart", "grinning face"]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline("builtin:tiny")


@pytest.fixture(scope="module")
def embedded(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Embeddings of the prompts, and of the empty one."""
    text, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    return text, null


@pytest.fixture(scope="module")
def clean(pipeline: Any, embedded: tuple[Tensor, Tensor]) -> Tensor:
    """Latents of pictures that the base paints."""
    noise = torch.randn((2, 4, *latent_size(pipeline)), generator=torch.Generator().manual_seed(0))
    text, null = embedded
    return reconstruct(Walk(pipeline, 20), noise, text, [null] * 20, 3.0)


@pytest.fixture(scope="module")
def real(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Latents of two drawings that the base has never seen, and embeddings of their captions."""
    chosen = [drawing for drawing in openmoji.drawings() if drawing.held_out][:2]
    pictures = np.stack([openmoji.render(each, 64, Style.draw(each.key, 0)) for each in chosen])
    text, _ = pipeline.encode_prompt([each.short_caption for each in chosen], "cpu", 1, True)
    return encode_pictures(pipeline, pictures), text


def latent_size(pipeline: Any) -> tuple[int, int]:
    return (pipeline.unet.config.sample_size,) * 2


class Gaussian:
    """The optimal network where clean latents are normal with variance ``spread``: linear, and known."""

    def __init__(self, alphas: Tensor, prediction: str, spread: float) -> None:
        self.config = SimpleNamespace(addition_embed_type=None)
        self._alphas, self._prediction, self._spread = alphas, prediction, spread

    def __call__(self, noisy: Tensor, timestep: int, encoder_hidden_states: Tensor) -> SimpleNamespace:
        alpha = self._alphas[timestep]
        noise = noisy * (1 - alpha).sqrt() / (alpha * self._spread + 1 - alpha)
        if self._prediction == "epsilon":
            return SimpleNamespace(sample=noise)
        clean = (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return SimpleNamespace(sample=alpha.sqrt() * noise - (1 - alpha).sqrt() * clean)


def gaussian(prediction: str, spread: float) -> Any:
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, prediction_type=prediction)
    return SimpleNamespace(unet=Gaussian(scheduler.alphas_cumprod, prediction, spread), scheduler=scheduler)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_walk_is_diffusers_own_in_both_directions(prediction: str) -> None:
    model = gaussian(prediction, 0.5)
    walk = Walk(model, 10)
    latents, output = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    inverse = DDIMInverseScheduler.from_config(model.scheduler.config)
    inverse.set_timesteps(10)
    for timestep in walk.timesteps:
        expected = model.scheduler.step(output, timestep, latents).prev_sample
        torch.testing.assert_close(walk.forwards(latents, timestep, output), expected)
        expected = inverse.step(output, timestep, latents).prev_sample
        torch.testing.assert_close(walk.backwards(latents, timestep, output), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_gaussian_latents_are_inverted_to_the_closed_form(prediction: str) -> None:
    """The flow of normal data scales a latent by the ratio of the standard deviations at both ends."""
    spread = 0.25
    model = gaussian(prediction, spread)
    latents = torch.randn(1, 3, 4, 4)
    alphas = model.scheduler.alphas_cumprod
    errors = []
    for steps in (125, 250, 500):
        walk = Walk(model, steps)
        ends = alphas[[0, walk.timesteps[0]]]
        scale = ((ends[1] * spread + 1 - ends[1]) / (ends[0] * spread + 1 - ends[0])).sqrt()
        found = ddim_inversion(walk, latents, torch.zeros(1, 1, 1))[-1]
        errors.append(float((found - scale * latents).abs().max()))
    assert errors[2] < 0.03
    slope = np.polyfit(np.log([125, 250, 500]), np.log(errors), 1)[0]
    assert slope == pytest.approx(-1, abs=0.2)


def test_a_round_trip_s_error_falls_with_the_steps(
    pipeline: Any, clean: Tensor, real: tuple[Tensor, Tensor], embedded: tuple[Tensor, Tensor]
) -> None:
    """As 1 / steps, for what the base paints and for real pictures."""
    clean, text = torch.cat([clean[:1], real[0]]), torch.cat([embedded[0][:1], real[1]])
    null = embedded[1][:1]
    errors = []
    for steps in (10, 20, 40, 80):
        walk = Walk(pipeline, steps)
        noise = ddim_inversion(walk, clean, text)[-1]
        back = reconstruct(walk, noise, text, [null] * steps, 1.0)
        errors.append((back - clean).square().mean((1, 2, 3)).sqrt().numpy())
    slopes = np.polyfit(np.log([10, 20, 40, 80]), np.log(errors), 1)[0]
    assert (np.diff(errors, axis=0) < 0).all()
    assert (slopes > -1.3).all()
    assert (slopes < -0.7).all()


def test_null_text_never_gets_worse_and_beats_ddim_under_guidance(
    pipeline: Any, clean: Tensor, embedded: tuple[Tensor, Tensor]
) -> None:
    text, null = embedded
    walk = Walk(pipeline, 10)
    inverted = ddim_inversion(walk, clean, text)
    fitted = null_text_inversion(walk, inverted, text, null, guidance=3.0)
    assert (fitted.losses.diff(dim=1) <= 0).all()
    assert (fitted.losses[:, -1] < fitted.losses[:, 0]).any()
    plain = reconstruct(walk, inverted[-1], text, [null] * 10, 3.0)
    better = reconstruct(walk, inverted[-1], text, fitted.embeddings, 3.0)
    plain_error, error = ((found - clean).square().mean((1, 2, 3)) for found in (plain, better))
    assert (error < 0.5 * plain_error).all()


class Told:
    """A network that answers what it is told, the mean of its embedding, so that guidance is all the error there is."""

    config = SimpleNamespace(addition_embed_type=None)

    def __call__(self, latents: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Any:
        return SimpleNamespace(sample=encoder_hidden_states.mean((1, 2))[:, None, None, None].expand_as(latents))


def test_null_text_fits_to_the_end_of_a_long_walk() -> None:
    """The authors' learning rate is for 50 steps, and 0 from the hundredth on."""
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    text, null = torch.full((1, 2, 3), 20.0), torch.zeros((1, 2, 3))
    for steps in (50, 200):
        walk = Walk(SimpleNamespace(unet=Told(), scheduler=scheduler), steps)
        inverted = ddim_inversion(walk, torch.ones((1, 1, 2, 2)), text)
        losses = null_text_inversion(walk, inverted, text, null, guidance=3.0).losses[..., 0]
        fell = (losses[:, -1] < losses[:, 0]).view(5, -1)  # by the fifth of the walk
        assert fell.any(dim=1).all(), steps


def test_a_picture_s_embedding_does_not_depend_on_its_batch(
    pipeline: Any, clean: Tensor, embedded: tuple[Tensor, Tensor]
) -> None:
    text, null = embedded
    walk = Walk(pipeline, 4)

    def fitted(part: slice) -> Tensor:
        inverted = ddim_inversion(walk, clean[part], text[part])
        return null_text_inversion(
            walk, inverted, text[part], null[part], guidance=3.0, inner_steps=3, learning_rate=0.01
        ).embeddings

    torch.testing.assert_close(fitted(slice(0, 2))[:, :1], fitted(slice(0, 1)), rtol=0, atol=2e-3)


def test_a_shared_embedding_is_fitted_to_all_pictures_together(
    pipeline: Any, clean: Tensor, embedded: tuple[Tensor, Tensor]
) -> None:
    """It lowers the mean of the losses; with one picture it is that picture's own."""
    text, null = embedded
    walk = Walk(pipeline, 4)
    inverted = ddim_inversion(walk, clean, text)
    shared = null_text_inversion(walk, inverted, text, null[:1], guidance=3.0, inner_steps=4)
    assert shared.embeddings.shape == (4, 1, *null.shape[1:])
    assert (shared.losses.diff(dim=1) <= 0).all()
    assert (shared.losses[:, -1] < shared.losses[:, 0]).all()
    torch.testing.assert_close(shared.distances.mean(dim=1), shared.losses[:, -1, 0])
    back = reconstruct(walk, inverted[-1], text, shared.embeddings.expand(-1, 2, -1, -1), 3.0)
    torch.testing.assert_close((back - clean).square().mean((1, 2, 3)), shared.distances[-1], rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="3 unconditional embeddings of 2 pictures"):
        null_text_inversion(walk, inverted, text, null[[0, 0, 0]], guidance=3.0)


def test_a_walk_may_begin_later(pipeline: Any, clean: Tensor, embedded: tuple[Tensor, Tensor]) -> None:
    """As diffusers noises latents, and as the rest of the whole walk goes on."""
    text, null = embedded
    walk = Walk(pipeline, 4)
    inverted = ddim_inversion(walk, clean, text)
    later = walk.backwards(inverted[1], walk.timesteps[2], walk.predict(inverted[1], walk.timesteps[2], text))
    torch.testing.assert_close(later, inverted[2])
    halfway = reconstruct(walk, inverted[2], text, [null] * 4, 1.0, skip=2)
    last = walk.timesteps[3]
    first = walk.forwards(later, walk.timesteps[2], walk.predict(later, walk.timesteps[2], text))
    torch.testing.assert_close(halfway, walk.forwards(first, last, walk.predict(first, last, text)))
    noise = torch.randn_like(clean)
    expected = pipeline.scheduler.add_noise(clean, noise, torch.tensor([walk.timesteps[1]]))
    torch.testing.assert_close(walk.noised(clean, noise, 1), expected)


def test_what_can_not_be_inverted_is_refused(pipeline: Any) -> None:
    with pytest.raises(ValueError, match=r"steps=0: give 1 to 1000"):
        Walk(pipeline, 0)
    model = gaussian("epsilon", 1.0)
    model.unet.config.addition_embed_type = "text_time"
    with pytest.raises(ValueError, match="XL"):
        Walk(model, 10)
