"""A saved adapter means to plain diffusers what it meant to the training."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from smooth.config import LoraConfig
from smooth.models import WEIGHTS_NAME
from smooth.models.lora import adapter_names, add_lora, lora_file, save_lora
from smooth.models.pipeline import load_pipeline


def _inputs(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = unet.config.sample_size
    return {
        "sample": torch.randn(2, unet.config.in_channels, size, size, generator=generator),
        "timestep": torch.tensor([10, 700]),
        "encoder_hidden_states": torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator),
    }


@torch.no_grad()
def _output(unet: UNet2DConditionModel) -> Tensor:
    return unet(**_inputs(unet)).sample


def _weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The adapter's weights by their peft names."""
    return adapter_names(unet, {name: weight.detach() for name, weight in unet.named_parameters()})


def test_plain_diffusers_loads_the_adapter_to_the_same_output(tiny_base: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(tiny_base)
    before = _output(pipeline.unet)
    # alpha unlike rank: a file without the adapter's settings would load at half the strength
    parameters = add_lora(pipeline.unet, LoraConfig(rank=4, alpha=8), seed=1)
    torch.testing.assert_close(_output(pipeline.unet), before)
    torch.manual_seed(2)
    for parameter in parameters:
        parameter.data += 0.05 * torch.randn_like(parameter)
    trained = _output(pipeline.unet)
    assert (trained - before).abs().max() > 1e-3

    path = save_lora(str(tmp_path / "adapter"), _weights(pipeline.unet), pipeline.unet)
    assert path == str(tmp_path / "adapter" / WEIGHTS_NAME)
    plain = load_pipeline(tiny_base)
    plain.load_lora_weights(str(tmp_path / "adapter"))
    torch.testing.assert_close(_output(plain.unet), trained, rtol=0, atol=1e-5)


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    weights = {"up.to_q.lora_A.weight": torch.rand(4, 3), "up.to_q.lora_B.weight": torch.rand(3, 4)}
    settings = {"r": 4, "lora_alpha": 8.0, "target_modules": {"to_q", "to_v", "to_k"}, "bias": "nöne"}
    found = {lora_file(weights, settings) for _ in range(20)}
    assert len(found) == 1
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(*found)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
        read = json.loads(file.metadata()["lora_adapter_metadata"])
        assert read == {f"unet.{k}": sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
        assert set(file.keys()) == {f"unet.{name}" for name in weights}
        assert all(torch.equal(file.get_tensor(f"unet.{name}"), weight) for name, weight in weights.items())


def test_start_depends_on_the_seed_alone_and_trains_only_the_adapter(tiny_base: str) -> None:
    starts = []
    for noise, seed in ((0, 1), (5, 1), (0, 2)):
        unet = load_pipeline(tiny_base).unet
        torch.manual_seed(noise)
        random_state = torch.get_rng_state()
        parameters = add_lora(unet, LoraConfig(), seed)
        assert torch.equal(torch.get_rng_state(), random_state)
        assert {id(parameter) for parameter in parameters} == {
            id(parameter) for name, parameter in unet.named_parameters() if "lora_" in name
        }
        starts.append({name: weight.clone() for name, weight in _weights(unet).items()})
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not all(torch.equal(starts[0][name], starts[2][name]) for name in starts[0])


def test_targets_that_fit_no_layer_are_refused(tiny_base: str) -> None:
    with pytest.raises(ValueError, match=r"train\.lora\.targets=\['to_nothing'\]"):
        add_lora(load_pipeline(tiny_base).unet, LoraConfig(targets=("to_nothing",)), seed=0)
