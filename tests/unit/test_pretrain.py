"""The pretraining loop: it ends by steps or time, resumes, and writes an ordinary pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch

from smooth.data.openmoji import Style, drawings, render
from smooth.pretrain import denoiser
from smooth.pretrain.architecture import IMAGE_SIZE, MAX_TOKENS, build_tokenizer
from smooth.pretrain.autoencoder import held_out_psnr, train_autoencoder
from smooth.pretrain.corpus import Corpus
from smooth.pretrain.run import save_half
from smooth.pretrain.runner import Budget

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    chosen = drawings()[:4]
    pictures = np.stack([render(drawing, IMAGE_SIZE, Style.draw(drawing.key, 1))[None] for drawing in chosen])
    return Corpus(chosen, pictures)


def test_budget_ends_by_steps_or_by_time() -> None:
    budget = Budget(steps=10, batch_size=1, learning_rate=1.0, minutes=1, warmup=2)
    assert budget.progress(5, 0) == 0.5
    assert budget.progress(5, 45) == 0.75
    assert budget.progress(10, 0) == budget.progress(0, 61) == 1
    assert budget.rate(0, 0) == 0.5
    assert budget.rate(5, 1.0) == pytest.approx(0.01)


def test_tokenizer_knows_every_text() -> None:
    tokenizer = build_tokenizer([drawing.caption for drawing in drawings()])
    ids = tokenizer("woman surfing medium-light skin tone", padding="max_length").input_ids
    assert len(ids) == MAX_TOKENS
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "womansurfingmedium-lightskintone"
    assert all(len(tokenizer(drawing.caption).input_ids) <= MAX_TOKENS for drawing in drawings())
    assert tokenizer.unk_token_id not in tokenizer("日本 Ω", add_special_tokens=False).input_ids


def test_training_resumes_and_saves_an_ordinary_pipeline(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    monkeypatch.setattr(denoiser, "SAMPLES_EVERY", 2)
    sampled: list[int] = []
    vae, _ = train_autoencoder(corpus, Budget(2, 2, 1e-3), tmp_path, CPU)
    assert held_out_psnr(vae, corpus, CPU) > 0
    for steps in (2, 4):
        pipeline, seconds = denoiser.train_denoiser(
            vae, corpus, Budget(steps, 2, 1e-3), tmp_path, CPU, lambda _, step: sampled.append(step)
        )
    assert sampled == [2, 4]
    assert seconds > 0
    expected = pipeline.unet.conv_in.weight.detach().half().float()
    save_half(pipeline, tmp_path / "out")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    assert {p.dtype for part in (loaded.unet, loaded.vae, loaded.text_encoder) for p in part.parameters()} == {
        torch.float32
    }
    torch.testing.assert_close(loaded.unet.conv_in.weight.detach(), expected)
