"""CLIP and DINOv2 of random weights against transformers' own models; CMMD against a double loop."""

from __future__ import annotations

import shutil
import tracemalloc
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from smooth.config import ConfigError, EvaluateConfig, resolve_model
from smooth.evaluate import networks
from smooth.evaluate.cmmd import cmmd
from smooth.evaluate.compare import metrics_of
from smooth.evaluate.embedders import EmbeddingNetwork
from smooth.evaluate.features import FeatureNetwork
from smooth.evaluate.frechet import gaussian_distance
from smooth.evaluate.moments import Moments
from smooth.evaluate.networks import Network
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
    scale = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}  # as of the published ones
    transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size=28, **scale).save_pretrained(dinov2)
    return EvaluateConfig(clip=str(clip), dinov2=str(dinov2))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)


def loaded(network: Network) -> EmbeddingNetwork:
    return EmbeddingNetwork(network, networks.contents(network))


def found(config: EvaluateConfig) -> tuple[Network, Network]:
    """Both, without the network that is always there."""
    _, clip, dinov2 = networks.find(config, 64)
    return clip, dinov2


def test_embeddings_and_scores_are_transformers_own(models: EvaluateConfig, pictures: np.ndarray) -> None:
    """On pictures as CLIP's authors prepare them for it."""
    clip, _ = found(models)
    numbers = loaded(clip)(pictures, PROMPTS)
    assert numbers.shape == (3, 13)
    prepare = Compose(
        [
            Resize(32, InterpolationMode.BICUBIC),
            CenterCrop(32),
            ToTensor(),
            Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ]
    )
    pixels = torch.stack([prepare(Image.fromarray(picture)) for picture in pictures])
    model = CLIPModel.from_pretrained(models.clip).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(models.clip)(PROMPTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(pixel_values=pixels, **tokens)
    np.testing.assert_allclose(numbers[:, :-1], theirs.image_embeds, atol=1e-5)
    cosines = (theirs.logits_per_image / model.logit_scale.exp()).diagonal().detach()
    np.testing.assert_allclose(numbers[:, -1], cosines, atol=1e-5)
    assert (loaded(clip)(pictures)[:, -1] == 0).all()


def test_dinov2_sees_the_whole_picture_as_published(models: EvaluateConfig, pictures: np.ndarray) -> None:
    """As dgm-eval prepares it, though the model's processor would resize to more and cut the rim off."""
    _, dinov2 = found(models)
    scale = Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    prepare = Compose([Resize((224, 224), InterpolationMode.BICUBIC), ToTensor(), scale])
    pixels = torch.stack([prepare(Image.fromarray(picture)) for picture in pictures])
    model = Dinov2Model.from_pretrained(models.dinov2).eval()
    processed = transformers.AutoImageProcessor.from_pretrained(models.dinov2)(list(pictures), return_tensors="pt")
    with torch.no_grad():
        expected, cropped = (model(pixel_values=each).pooler_output for each in (pixels, processed["pixel_values"]))
    numbers = loaded(dinov2)(pictures)
    np.testing.assert_allclose(numbers, expected, atol=1e-5)
    assert np.abs(numbers - cropped.numpy()).max() > 0.1
    assert (dinov2.stamp["feature_input"], dinov2.stamp["resize"]) == (224, "the whole picture, bicubic (Pillow)")


def test_a_network_is_told_by_all_that_its_numbers_depend_on_and_not_by_where_it_lies(
    models: EvaluateConfig, tmp_path: Path
) -> None:
    assert models.clip is not None
    folder = tmp_path / "elsewhere"
    shutil.copytree(models.clip, folder)
    moved = models.model_copy(update={"clip": str(folder)})
    clip = found(models)[0]
    assert found(moved)[0].identity == clip.identity
    identities = {clip.identity}
    for name, old, new in (
        ("preprocessor_config.json", "0.48145466", "0.5"),
        ("tokenizer.json", '"a"', '"aa"'),
        ("config.json", '"hidden_act": "quick_gelu"', '"hidden_act": "gelu"'),
    ):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
        changed = found(moved)[0]
        assert changed.stamp["weights"] == clip.stamp["weights"]
        assert changed.stamp["model"] == changed.identity
        identities.add(changed.identity)
    assert len(identities) == 4


def test_a_network_goes_to_machines_that_do_not_have_it(
    models: EvaluateConfig, pictures: np.ndarray, tmp_path: Path
) -> None:
    for kind, network in zip(("clip", "dinov2"), found(models), strict=True):
        folder = tmp_path / kind
        shutil.copytree(getattr(models, kind), folder)
        (lent,) = (each for each in found(models.model_copy(update={kind: str(folder)})) if each.kind == kind)
        contents = {name: data.copy() for name, data in networks.contents(lent).items()}
        shutil.rmtree(folder)
        np.testing.assert_array_equal(EmbeddingNetwork(lent, contents)(pictures), loaded(network)(pictures))


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


@pytest.mark.filterwarnings("ignore::smooth.evaluate.frechet.BiasWarning")  # they are few
def test_painters_embed_beside_the_other_features_and_metrics_are_told_by_label(models: EvaluateConfig) -> None:
    at_hand = networks.find(models, 64)
    _, clip, dinov2 = at_hand
    asked = protocol(picture_prompts=tuple(PROMPTS), networks=at_hand)
    tiny = Subject("builtin:tiny")
    contents = [networks.contents(network) for network in at_hand]
    painter = Painter({"base": tiny, "smooth": tiny}, asked, cuda=False, contents=contents)
    block = Block("pictures", 0, 3)
    _, _, painted, features = painter.result("base", block, (0, 1, 2))
    assert painted is not None
    expected = [FeatureNetwork(64)(painted), loaded(clip)(painted, PROMPTS), loaded(dinov2)(painted)]
    for numbers, wanted in zip(features, expected, strict=True):
        np.testing.assert_allclose(numbers, wanted, atol=1e-5)
    _, _, nothing, again = painter.result("base", block, (2,), painted)
    assert nothing is None
    np.testing.assert_array_equal(again[0], features[2])

    rng = np.random.default_rng(2)
    rows = [[rng.normal(size=(30, each.shape[1])).astype(np.float32) for each in features] for _ in range(3)]
    base, smooth = (Found(rng.uniform(1, 2, (3, 2)), rng.uniform(3, 4, 3), row) for row in rows[:2])
    told = {(metric.name, metric.model): metric for metric in metrics_of(asked, base, smooth, rows[2])}
    scores = [100 * row[1][:, -1].clip(0) for row in rows]
    assert told[f"CLIP score{clip.label}", "base"].value == pytest.approx(scores[0].mean(), rel=1e-5)
    difference = told[f"CLIP score{clip.label}", "smooth - base"].value
    assert difference == pytest.approx((scores[1] - scores[0]).mean(), rel=1e-5)
    distance = cmmd(rows[1][1][:, :-1], rows[2][1][:, :-1])
    assert told[f"CMMD{clip.label}", "smooth"].value == pytest.approx(distance)
    fits = [Moments.of(row[2]) for row in (rows[0], rows[2])]
    frechet = gaussian_distance(fits[0].mean, fits[0].covariance, fits[1].mean, fits[1].covariance)
    assert told[f"FD-DINOv2{dinov2.label}", "base"].value == pytest.approx(frechet)
    for name in (f"CMMD{clip.label}", f"CLIP score{clip.label}"):
        assert told[name, "base"].stamp.items() >= clip.stamp.items()


def test_only_the_published_models_give_the_published_names(
    models: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, dinov2 = found(models)
    assert clip.label == f" ({str(clip.stamp['weights'])[:8]})"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("dinov2-large", "dinov2-small"):
        cached = tmp_path / f"models--facebook--{name}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("revision")
        shutil.copytree(str(models.dinov2), cached / "snapshots" / "revision")
    _, large = networks.find(EvaluateConfig(), 64)
    _, small = networks.find(EvaluateConfig(dinov2="facebook/dinov2-small"), 64)
    assert (large.label, small.label) == ("", " (facebook/dinov2-small)")
    assert large.identity == small.identity == dinov2.identity
    assert small.stamp["features"] == "facebook/dinov2-small"


def test_what_is_not_at_hand_is_listed_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert [network.kind for network in networks.find(EvaluateConfig(), 64)] == ["efficientnet"]
    assert "hf download facebook/dinov2-large" in networks.missing("dinov2")
    nothing = Found(np.ones((3, 2)), np.ones(3), [])
    told = {metric.name: metric for metric in metrics_of(protocol(), nothing, nothing, [])}
    for name in ("CMMD", "CLIP score", "FD-DINOv2"):
        assert told[name].value is None
        assert "hf download" in told[name].note


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_a_folder_of_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"evaluate\.{kind}={tmp_path}: .* holds no {kind} model"):
        networks.find(EvaluateConfig.model_validate({kind: str(tmp_path)}), 64)
    with pytest.raises(ConfigError, match="no such folder"):
        networks.find(EvaluateConfig.model_validate({kind: str(tmp_path / "none")}), 64)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}", "projection_dim": 3, "hidden_size": 3}}')
    with pytest.raises(ConfigError, match=r"holds none of model\.safetensors"):
        networks.find(EvaluateConfig.model_validate({kind: str(tmp_path)}), 64)
