"""One model at many strengths, and text to image."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from smooth import store
from smooth.config import ConfigError, ModelConfig, TrainConfig
from smooth.edit.generate import generate, image_size, noise
from smooth.edit.model import EditModel, open_model
from smooth.models import WEIGHTS_NAME, trained
from smooth.models.pipeline import ModelError, load_pipeline
from smooth.registry_pyfunc import TextToImage
from tests.evaluated import write_adapter


@pytest.fixture(scope="module")
def adapter(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(tiny_base, str(folder))
    return folder


@pytest.fixture(scope="module")
def model(adapter: Path, tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> EditModel:
    return opened(str(adapter), tiny_base, tmp_path_factory.mktemp("scratch"))


def opened(name: str, base: str, scratch: Path) -> EditModel:
    return open_model(name, ModelConfig(base=base), scratch=str(scratch), device="cpu")


def answer(pipeline: Any) -> torch.Tensor:
    """The network's output at one place."""
    draw = torch.Generator().manual_seed(0)
    text = torch.randn((1, 4, pipeline.unet.config.cross_attention_dim), generator=draw)
    with torch.no_grad():
        output: torch.Tensor = pipeline.unet(
            torch.randn((1, 4, 16, 16), generator=draw), 500, encoder_hidden_states=text
        ).sample
    return output


def test_strength_scales_what_was_trained(model: EditModel, adapter: Path, tiny_base: str, tmp_path: Path) -> None:
    """Half the strength is half the update: another file, whose up-projections are halved."""
    torch.testing.assert_close(answer(model.at(0)), answer(load_pipeline(tiny_base)), rtol=0, atol=0)
    whole = answer(load_pipeline(tiny_base, lora=adapter))
    torch.testing.assert_close(answer(model.at(1)), whole)
    for strength in (0.5, 2.0, -1.0):
        weights = load_file(adapter / WEIGHTS_NAME)
        scaled = {name: weight * strength if "lora_B" in name or ".up." in name else weight
                  for name, weight in weights.items()}  # fmt: skip
        assert any(not torch.equal(scaled[name], weights[name]) for name in weights)
        save_file(scaled, tmp_path / WEIGHTS_NAME)
        expected = answer(load_pipeline(tiny_base, lora=tmp_path))
        assert not torch.allclose(expected, whole)
        torch.testing.assert_close(answer(model.at(strength)), expected)
    torch.testing.assert_close(answer(model.at(1)), whole)


def test_identity_goes_by_content_and_strength(model: EditModel, adapter: Path, tiny_base: str, tmp_path: Path) -> None:
    plain = opened(tiny_base, tiny_base, tmp_path)
    assert model.identity_at(0) == plain.identity_at(1)
    assert len({model.identity_at(strength) for strength in (0, 0.5, 1, 2)}) == 4
    copy = tmp_path / "style.safetensors"
    copy.write_bytes((adapter / WEIGHTS_NAME).read_bytes())
    assert opened(str(copy), tiny_base, tmp_path).identity == model.identity
    assert model.has_base
    assert not plain.has_base


def test_a_whole_unet_is_on_or_off(tiny_base: str, tmp_path: Path) -> None:
    unet = load_pipeline(tiny_base).unet
    config = TrainConfig(method="full")
    weights = {name: 1.1 * value.detach() for name, value in trained.choose(unet, config, seed=0).items()}
    trained.save(str(tmp_path / "tuned"), weights, unet, config)
    model = opened(str(tmp_path / "tuned"), tiny_base, tmp_path)
    base, tuned = answer(model.at(0)), answer(model.at(1))
    torch.testing.assert_close(base, answer(load_pipeline(tiny_base)), rtol=0, atol=0)
    assert not torch.allclose(base, tuned)
    (file,) = (tmp_path / "tuned" / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"tuned can't be read: .* broken or cut short"):
        opened(str(tmp_path / "tuned"), tiny_base, tmp_path)
    with pytest.raises(
        ValueError, match=r"strength=0\.5: .*tuned is a UNet fine-tuned as a whole, which knows 0 and 1"
    ):
        model.at(0.5)


def test_registered_models_come_by_their_name(
    adapter: Path, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: EditModel
) -> None:
    from smooth import registry

    monkeypatch.setattr(registry, "fetch", lambda name, root: (tiny_base, None, str(adapter)))
    found = open_model("models:/smooth/3", scratch=str(tmp_path), device="cpu")
    assert found.identity == model.identity


def spoilt(adapter: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], folder: Path) -> str:
    save_file(change(load_file(adapter / WEIGHTS_NAME)), folder / "spoilt.safetensors")
    return str(folder / "spoilt.safetensors")


def test_what_does_not_fit_is_refused(adapter: Path, tiny_base: str, tmp_path: Path) -> None:
    wide = spoilt(adapter, lambda weights: {name: torch.cat([w, w], -1) for name, w in weights.items()}, tmp_path)
    with pytest.raises(ModelError, match=r"spoilt\.safetensors does not fit its base"):
        opened(wide, tiny_base, tmp_path)
    whole = (adapter / WEIGHTS_NAME).read_bytes()
    for name, data in (("words", b"no tensors here"), ("half", whole[: len(whole) // 2])):
        broken = str(tmp_path / f"{name}.safetensors")
        store.write_bytes(broken, data)
        with pytest.raises(ModelError, match=rf"{name}\.safetensors can't be read: .* broken or cut short"):
            opened(broken, tiny_base, tmp_path)
        with pytest.raises(ModelError, match=rf"{name}\.safetensors can't be read: .* broken or cut short"):
            load_pipeline(tiny_base, lora=broken)
    with pytest.raises(ConfigError, match="is a pickle"):
        opened("model.ckpt", tiny_base, tmp_path)
    with pytest.raises(ValueError, match=r"strength=0\.5: .* is a pipeline with no LoRA beside it"):
        opened(tiny_base, tiny_base, tmp_path).at(0.5)
    with pytest.raises(ValueError, match="strength=nan: give a number"):
        opened(str(adapter), tiny_base, tmp_path).at(float("nan"))


def test_the_registered_model_paints_the_same(model: EditModel, adapter: Path, tiny_base: str, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_NAME).write_bytes((adapter / WEIGHTS_NAME).read_bytes())
    described = {
        "flavors": {"diffusers": {"adapter_weights": ".", "base_model": tiny_base}},
        "metadata": {"smooth.base": tiny_base},
    }
    (tmp_path / "MLmodel").write_text(yaml.safe_dump(described))
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "negative_prompt": "blue"}
    rows = {"prompt": ["red heart", "cat"], "seed": [7, 8]}
    served = TextToImage(tmp_path, {"device": "cpu"}).predict(rows, settings)
    ours = generate(model.at(1), rows["prompt"], rows["seed"], steps=3, guidance=3.0, negative="blue")
    assert np.array_equal(ours, np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in served]))
    (tmp_path / WEIGHTS_NAME).write_bytes((adapter / WEIGHTS_NAME).read_bytes()[:-1])
    with pytest.raises(SafetensorError):  # and no search for a pickle in its place
        TextToImage(tmp_path, {"device": "cpu"}).get_raw_model()


def test_a_picture_does_not_depend_on_the_others(model: EditModel) -> None:
    told: list[tuple[int, int]] = []
    pipeline = model.at(0.5)
    both = generate(
        pipeline, ["cat", "dog"], [1, 2], steps=2, guidance=3.0, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert np.array_equal(both[1:], generate(pipeline, ["dog"], [2], steps=2, guidance=3.0))
    assert both.shape == (2, image_size(pipeline), image_size(pipeline), 3)
    smaller = generate(pipeline, ["cat"], [1], steps=1, guidance=1.0, size=32)
    assert smaller.shape == (1, 32, 32, 3)


def test_progress_can_end_the_work(model: EditModel) -> None:
    class CancelledError(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        generate(model.at(1), ["cat"], [1], steps=50, guidance=3.0, progress=cancel)
    assert generate(model.at(1), ["cat"], [1], steps=1, guidance=3.0).shape[0] == 1


def test_two_threads_share_a_model_by_its_lock(model: EditModel) -> None:
    def paint(strength: float) -> np.ndarray:
        with model.lock:
            return generate(model.at(strength), ["cat"], [1], steps=2, guidance=3.0)

    strengths = [0.0, 1.0, 0.5, 2.0] * 2
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(paint, strengths))
    assert all(
        np.array_equal(picture, paint(strength)) for picture, strength in zip(found[:4], strengths, strict=False)
    )
    assert all(np.array_equal(first, second) for first, second in zip(found[:4], found[4:], strict=True))
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0: give 1 to 1000"),
        ({"guidance": float("nan")}, "guidance=nan: give a scale"),
        ({"seeds": [-1]}, "seed=-1: give a number from 0"),
        ({"seeds": [1, 2]}, "1 prompts with 2 seeds"),
        ({"size": 63}, "no multiple"),
        ({"prompts": ["a" * 3000]}, "a prompt of 3000 characters"),
    ],
)
def test_settings_that_can_not_be_are_refused(model: EditModel, change: dict[str, Any], message: str) -> None:
    settings = {"prompts": ["cat"], "seeds": [1], "steps": 2, "guidance": 3.0} | change
    with pytest.raises(ValueError, match=message):
        generate(model.at(1), **settings)


def test_noise_is_the_seed_s_own(model: EditModel) -> None:
    pipeline = model.at(0)
    assert torch.equal(noise(pipeline, 5), noise(pipeline, 5))
    assert not torch.equal(noise(pipeline, 5), noise(pipeline, 6))
