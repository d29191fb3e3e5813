"""CLIP and DINOv2 of random weights against transformers' own models; CMMD against a double loop."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, Dinov2Config, Dinov2Model

from smooth.config import ConfigError, EvaluateConfig, resolve_model
from smooth.evaluate import embedders
from smooth.evaluate.cmmd import cmmd
from smooth.evaluate.compare import metrics_of
from smooth.evaluate.embedders import EmbeddingNetwork, find
from smooth.evaluate.features import FeatureNetwork
from smooth.evaluate.frechet import gaussian_distance
from smooth.evaluate.moments import Moments
from smooth.evaluate.subjects import Subject
from smooth.evaluate.worker import Block, Painter
from tests.protocols import protocol
from tests.unit.test_compare import Found

PROMPTS = ["red heart", "a grinning face", "hat"]
WIDTH = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """Both models in folders, small."""
    clip, dinov2 = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(resolve_model("builtin:tiny"), "tokenizer"))
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text, vision = WIDTH | words | ends, WIDTH | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(clip)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(clip)
    tokenizer.save_pretrained(clip)
    Dinov2Model(Dinov2Config(**WIDTH, image_size=28, patch_size=14)).save_pretrained(dinov2)
    transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size=28).save_pretrained(dinov2)
    return EvaluateConfig(clip=str(clip), dinov2=str(dinov2))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)


def test_embeddings_and_scores_are_transformers_own(models: EvaluateConfig, pictures: np.ndarray) -> None:
    clip, dinov2 = find(models)
    found = EmbeddingNetwork(clip)(pictures, PROMPTS)
    assert found.shape == (3, clip.columns) == (3, 13)
    model = CLIPModel.from_pretrained(clip.name).eval()
    processor = CLIPProcessor.from_pretrained(clip.name)
    with torch.no_grad():
        theirs = model(
            **processor(text=PROMPTS, images=list(pictures), return_tensors="pt", padding=True, truncation=True)
        )
    np.testing.assert_allclose(found[:, :-1], theirs.image_embeds, atol=1e-5)
    cosines = (theirs.logits_per_image / model.logit_scale.exp()).diagonal().detach()
    np.testing.assert_allclose(found[:, -1], cosines, atol=1e-5)
    assert (EmbeddingNetwork(clip)(pictures)[:, -1] == 0).all()

    own = EmbeddingNetwork(dinov2)(pictures)
    processed = transformers.AutoImageProcessor.from_pretrained(dinov2.name)(list(pictures), return_tensors="pt")
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dinov2.name).eval()(**processed).pooler_output
    np.testing.assert_allclose(own, expected, atol=1e-5)


def test_cmmd_is_the_mean_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    a, b = ((x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (rng.normal(size=(5, 4)), rng.normal(size=(7, 4))))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([np.exp(-((p - q) @ (p - q)) / 200) for p, q in product(x, y)]))

    monkeypatch.setattr("smooth.evaluate.cmmd.ROWS", 2)
    assert cmmd(a, b) == pytest.approx(1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)), rel=1e-9)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)


def test_cmmd_by_rows_is_that_of_the_whole_matrix_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(1500, 8)), rng.normal(size=(1300, 8)) + 0.2
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    whole = cmmd(a, b)
    monkeypatch.setattr("smooth.evaluate.cmmd.ROWS", 64)
    tracemalloc.start()
    found = cmmd(a, b)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == pytest.approx(whole, rel=1e-12)
    assert peak < 5 * 64 * 1500 * 8  # a matrix of 1500 by 1500 has five times that


def test_painters_embed_beside_the_other_features_and_metrics_are_told_by_label(models: EvaluateConfig) -> None:
    at_hand = find(models)
    asked = protocol(picture_prompts=tuple(PROMPTS), embedders=at_hand)
    tiny = Subject("builtin:tiny")
    painter = Painter({"base": tiny, "smooth": tiny}, asked, cuda=False)
    _, _, columns = painter.result("base", Block("pictures", 0, 3))
    painted = painter.paint("base", Block("pictures", 0, 3))
    start = FeatureNetwork.dimensions
    expected = [EmbeddingNetwork(at_hand[0])(painted, PROMPTS), EmbeddingNetwork(at_hand[1])(painted)]
    np.testing.assert_allclose(columns[:, start:], np.concatenate(expected, axis=1), atol=1e-5)

    rng = np.random.default_rng(2)
    rows = [rng.normal(size=(30, columns.shape[1])).astype(np.float32) for _ in range(3)]
    base, smooth = (Found(rng.uniform(1, 2, (3, 2)), rng.uniform(3, 4, 3), row) for row in rows[:2])
    told = {(metric.name, metric.model): metric for metric in metrics_of(asked, base, smooth, rows[2])}
    clip, dinov2 = (slice(start, start + 13), slice(start + 13, None))
    scores = [100 * row[:, clip][:, -1].clip(0) for row in rows]
    assert told[f"CLIP score{at_hand[0].label}", "base"].value == pytest.approx(scores[0].mean(), rel=1e-5)
    difference = told[f"CLIP score{at_hand[0].label}", "smooth - base"].value
    assert difference == pytest.approx((scores[1] - scores[0]).mean(), rel=1e-5)
    distance = cmmd(rows[1][:, clip][:, :-1], rows[2][:, clip][:, :-1])
    assert told[f"CMMD{at_hand[0].label}", "smooth"].value == pytest.approx(distance)
    fits = [Moments.of(row[:, dinov2]) for row in (rows[0], rows[2])]
    frechet = gaussian_distance(fits[0].mean, fits[0].covariance, fits[1].mean, fits[1].covariance)
    assert told[f"FD-DINOv2{at_hand[1].label}", "base"].value == pytest.approx(frechet)
    assert told["CMMD" + at_hand[0].label, "base"].stamp["weights"] == at_hand[0].sha256


def test_only_the_published_models_give_the_published_names(models: EvaluateConfig) -> None:
    clip, dinov2 = find(models)
    assert clip.label == f" ({clip.sha256[:8]})"
    assert replace(dinov2, name="facebook/dinov2-large").label == ""
    assert replace(dinov2, name="facebook/dinov2-small").label == " (facebook/dinov2-small)"


def test_what_is_not_at_hand_is_listed_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find(EvaluateConfig()) == ()
    assert "hf download facebook/dinov2-large" in embedders.missing("dinov2")
    rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    found = Found(np.ones((3, 2)), np.ones(3), rows)
    told = {metric.name: metric for metric in metrics_of(protocol(), found, found, rows)}
    for name in ("CMMD", "CLIP score", "FD-DINOv2"):
        assert told[name].value is None
        assert "hf download" in told[name].note


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_a_folder_of_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"evaluate\.{kind}={tmp_path}: .* holds no {kind} model"):
        find(EvaluateConfig.model_validate({kind: str(tmp_path)}))
    with pytest.raises(ConfigError, match="no such folder"):
        find(EvaluateConfig.model_validate({kind: str(tmp_path / "none")}))
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}", "projection_dim": 3, "hidden_size": 3}}')
    with pytest.raises(ConfigError, match=r"holds none of model\.safetensors"):
        find(EvaluateConfig.model_validate({kind: str(tmp_path)}))
