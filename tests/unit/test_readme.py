"""The README's examples run as they are printed: loops, pictures, exports."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn import functional
from typer.testing import CliRunner

from smooth.cli import app
from smooth.config import resolve_model
from smooth.models import WEIGHTS_NAME
from tests.evaluated import write_adapter
from tests.numerics.networks import Draws, adapted, unet
from tests.unit.test_help import parsed

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()
LINES = [
    shlex.split(line, comments=True)
    for line in re.findall(r"^ +(?:\.venv/bin/)?(smooth .*)$", README, flags=re.MULTILINE)
]
OF_PICTURES = ("generate", "interpolate", "invert", "edit", "drag", "show-params")


def block(containing: str) -> str:
    """The one Python example that has these words."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if containing in code)
    return code


def commands(*names: str) -> list[list[str]]:
    """Words of the README's `smooth` commands of these names, in order, without their comments."""
    return [words for words in LINES if words[1] in names]


def test_every_smooth_line_names_a_command_and_options_that_there_are() -> None:
    told = [parsed(words) for words in LINES]
    assert len(told) == len(re.findall(r"^ +(?:\.venv/bin/)?smooth .*$", README, flags=re.MULTILINE)) > 15
    assert {"evaluate", "export", "ingest retry", "plan", "registry status", "serve", "studio"} <= set(told)


def test_every_picture_and_file_it_links_to_is_there_and_no_picture_is_left_over() -> None:
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)#][^)]*)\)", README)}
    assert not sorted(link for link in links if not (PROJECT / link).exists())
    kept = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / ".github/images").iterdir()}
    assert not sorted(kept - links)


def run(words: list[str]) -> None:
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{shlex.join(words)}: {result.stderr}"


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A LoRA, in a folder of its own, with the work in another."""
    write_adapter("builtin:tiny", str(tmp_path / "adapter"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return str(tmp_path / "adapter")


def test_the_loop_of_ones_own_trains() -> None:
    network = adapted(unet((16, 32), layers=1))
    draws = Draws.make(2, size=8)
    places: dict[str, Any] = {
        "torch": torch,
        "functional": functional,
        "unet": network,
        "scheduler": DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        "loader": [(draws.clean, draws.text)] * 2,
    }
    exec(block("StepwiseVariation("), places)
    assert places["variation"].count == 3  # the start, and two batches
    gradients = [parameter.grad for parameter in network.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_commands_that_make_pictures(adapter: str) -> None:
    found = commands(*OF_PICTURES)
    assert {words[1] for words in found} == set(OF_PICTURES)
    for words in found:
        run(words)
    asked = {words[words.index("--out") + 1] for words in found if "--out" in words}
    assert asked <= {path.name for path in Path().iterdir()}


def test_exports(adapter: str) -> None:
    """ONNX takes a minute of the base; tests/unit/test_export.py writes and draws with a small one."""
    found = [words for words in commands("export") if "onnx" not in words]
    assert len(found) == 3
    for words in found:
        run([adapter if word == "LORA" else word for word in words])
    assert Path("smooth-lora", WEIGHTS_NAME).is_file()
    assert Path("smooth.safetensors").is_file()
    assert Path("smooth-08", "model_index.json").is_file()


def test_a_lora_in_plain_diffusers(adapter: str) -> None:
    places: dict[str, Any] = {"base": resolve_model("builtin:tiny"), "lora": adapter}
    exec(block("pipe.load_lora_weights(").replace("num_inference_steps=20", "num_inference_steps=2"), places)
    assert places["picture"].size == (64, 64)


def test_an_interpolation_in_ones_own_program(adapter: str) -> None:
    places: dict[str, Any] = {}
    exec(block("smooth.edit.interpolate").replace("steps=10", "steps=2"), places)
    assert places["pictures"].shape == (5, 64, 64, 3)


def test_istd_of_any_generator() -> None:
    draw = np.random.default_rng(0)
    shape = 3, 4, 8, 8, 3
    places: dict[str, Any] = {
        "images": draw.integers(0, 256, shape, dtype=np.uint8),
        "images_of_another": torch.from_numpy(draw.random(shape, dtype=np.float32)),
    }
    exec(block("smooth.evaluate.istd"), places)
    assert places["found"].per_prompt.shape == (3,)
    assert places["found"].istd.value > 0
