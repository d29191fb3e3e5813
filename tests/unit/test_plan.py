"""The planner: sizes against published ones and closed forms, verdicts, and what it prints."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from typer.testing import CliRunner

from smooth import store
from smooth.cli import app
from smooth.config import RunConfig, TrainConfig
from smooth.plan import architecture
from smooth.plan.architecture import Architecture, PlanError
from smooth.plan.estimate import Plan, measured_rate
from smooth.plan.memory import Footprint, account
from smooth.plan.trace import LiveBytes, Trace, trace
from tests.benchmarks.bench_variation import ARCHS
from tests.numerics.networks import unet

PLAIN = {"global_batch_size": 2, "micro_batch_size": 1, "workers": 1}


@pytest.fixture(scope="module")
def small() -> Architecture:
    """A UNet of two levels between the built-in base's other networks."""
    arch = ARCHS["small"]
    with torch.device("meta"):
        config = dict(unet(arch.unet, text_width=arch.text, groups=arch.groups).config)
    return replace(architecture.find("builtin:tiny"), unet=config)


@pytest.mark.parametrize(
    ("name", "of_unet", "of_vae", "of_texts"),
    [
        ("sd15", 859_520_964, 83_653_863, 123_060_480),
        ("sdxl", 2_567_463_684, 83_653_863, 123_060_480 + 694_659_840),
    ],
)
def test_the_known_models_have_their_published_numbers_of_parameters(
    name: str, of_unet: int, of_vae: int, of_texts: int
) -> None:
    known = architecture.named(name)
    with torch.device("meta"):
        assert architecture.count(known.build_unet()) == of_unet
    assert known.vae_parameters() == of_vae
    assert known.text_parameters() == of_texts


def test_a_base_that_nobody_knows_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PlanError, match="or give a diffusers folder"):
        architecture.find("someone/some-model")


def test_live_bytes_are_those_that_something_holds() -> None:
    known = torch.zeros(100)
    with LiveBytes([known]) as live:
        first = torch.ones(1000)
        view = first[:10] + 0  # 40 bytes of its own
        part = first.view(10, 100)
        assert live.now == 4040
        del first
        assert live.now == 4040  # the view holds it
        del part
        assert live.now == 40
        assert known[3:].sum().nbytes == 4
    assert live.now == view.nbytes
    assert live.peak == 4040


def saved_for_backward(network: UNet2DConditionModel, inputs: tuple[Tensor, Tensor, Tensor]) -> int:
    """Bytes that a forward pass keeps, by torch's own hooks: storages that are no parameters."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    sizes: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        noisy, timesteps, text = inputs
        output = network(noisy, timesteps, encoder_hidden_states=text).sample
        total = sum(sizes.values())
    del output
    return total


def test_activations_are_what_a_real_forward_pass_keeps_and_a_little(small: Architecture) -> None:
    config = TrainConfig(**PLAIN, method="full", variation={"weight": 0})
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, *small.text_shape)
    kept = saved_for_backward(small.build_unet(), inputs)
    counted = trace(small, config, (64, 64), gradient_share=1.0)
    assert 1.0 <= counted.activations / kept < 1.25
    assert counted.parameters == counted.trained
    assert counted.moments == 2 * 4 * counted.trained
    eight = trace(small, TrainConfig(**PLAIN, method="full", zero_stage=0, optimizer="adamw_8bit"), (64, 64), 1.0)
    assert 2 * counted.trained < eight.moments < 0.35 * counted.moments
    regularized = trace(small, TrainConfig(**PLAIN, method="full"), (64, 64), gradient_share=1.0)
    assert 1.9 < regularized.activations / counted.activations < 2.3  # the graphs of two forward passes
    keys = {**PLAIN, "method": "full", "gradient_checkpointing": True}
    again = trace(small, TrainConfig(**keys), (64, 64), gradient_share=1.0)
    assert again.activations < 0.6 * regularized.activations


COUNTED = Trace(parameters=1000, trained=600, moments=4800, activations=50_000, gradients=2400, validation=10)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # float32 weights and two moments; the gradients are those that were counted.
        ({"zero_stage": 0}, {"weights": 4000, "optimizer": 4800, "gradients": 2400}),
        ({"zero_stage": 0, "precision": "bf16"}, {"weights": 800 + 2400, "optimizer": 4800}),
        # A half of float32 weights and two moments each, and the bucket of all gradients in 16 bits.
        ({"zero_stage": 2, "precision": "bf16"}, {"weights": 2000, "optimizer": 3600, "gradients": 2400 + 1200}),
        # A half of the weights and all of them gathered.
        ({"zero_stage": 3, "precision": "bf16", "ema_decay": 0.9}, {"weights": 1000 + 2000, "average": 1200}),
        # Moments as they were counted; the update takes one weight after the other.
        ({"zero_stage": 0, "optimizer": "adamw_8bit", "ema_decay": 0.9}, {"optimizer": 4800, "average": 2400}),
        ({"zero_stage": 2, "offload_optimizer": True}, {"optimizer": 0, "host": 3600 + 2400}),
    ],
)
def test_what_stays_follows_from_the_number_of_parameters(keys: dict[str, Any], expected: dict[str, int]) -> None:
    memory = account(COUNTED, TrainConfig(**{**PLAIN, "workers": 2}, **keys), other_models=7, batch=11)
    assert {name: getattr(memory, name) for name in expected} == expected
    assert (memory.moment, memory.activations) == ("backward", 50_000)
    assert memory.total == sum(memory.parts().values())
    assert set(memory.parts()) == set(vars(memory)) - {"moment", "host"}


def test_the_worst_moment_may_be_another() -> None:
    config = TrainConfig(**PLAIN, zero_stage=0)
    update = account(replace(COUNTED, activations=0), config, other_models=0, batch=0)
    assert (update.moment, update.gradients, update.activations) == ("update", 2400, 2400)
    drawing = account(replace(COUNTED, validation=60_000), config, other_models=0, batch=0)
    assert (drawing.moment, drawing.gradients, drawing.activations) == ("validation", 0, 60_000)


def finished(config: RunConfig, folder: Path, rate: float) -> None:
    """A training of a config that ran at so many samples a second."""
    store.write_bytes(str(folder / "run_config.yaml"), config.to_yaml().encode())
    store.write_manifest(str(folder), {"final": {"samples_per_second": rate}})


def test_the_pace_is_that_of_a_finished_training_like_it(tmp_path: Path) -> None:
    root = f"storage.root={tmp_path}"
    config = RunConfig.load("tiny", [root, "train.steps=7"])
    assert measured_rate(config) is None
    finished(RunConfig.load("tiny", [root, "train.workers=1"]), tmp_path / "train" / "other", 5.0)
    assert measured_rate(config) is None
    finished(RunConfig.load("tiny", [root]), tmp_path / "train" / "same", 10.0)
    assert measured_rate(config) == 10.0


def test_a_plan_is_printed_with_hours_and_cost_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    arguments = ["plan", "-o", f"storage.root={tmp_path}", "--samples-per-second", "2", "--dollars-per-hour", "3"]
    result = CliRunner().invoke(app, [*arguments, "--memory-gib", "0.1"])
    train = RunConfig.load("tiny").train
    hours = train.steps * train.global_batch_size / 2 / 3600
    assert f"{hours:.2f} h at 2 samples/s, as given" in result.stdout
    assert f"{3 * hours * train.workers:.2f} dollars for {train.workers} workers" in result.stdout
    parts = re.findall(r"^  \w.*? +([\d.]+) GiB$", result.stdout, flags=re.MULTILINE)
    *some, total = map(float, parts)
    assert total == pytest.approx(sum(some), abs=0.005)
    assert "does not fit" in result.stdout
    assert result.exit_code == 2
    assert re.search(r"needs 0.1 GiB, its device has 0.1 GiB.*train.gradient_checkpointing=true", result.stderr)


def test_a_device_is_not_planned_to_its_last_byte() -> None:
    config = RunConfig.load("tiny")
    memory = account(COUNTED, config.train, other_models=0, batch=0)
    plan = Plan(config, Footprint(1000, 600, memory), int(memory.total / 0.9), None, None, False, None)
    plan.check_fits()
    with pytest.raises(PlanError, match=r"train\.gradient_checkpointing=true or train\.micro_batch_size=2"):
        replace(plan, device=int(memory.total / 0.95)).check_fits()
    assert replace(plan, device=None).check_fits() is None
