"""Which networks are at hand, as far as files tell, and when a finished evaluation is measured again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smooth import stages, store
from smooth.config import EvaluateConfig, RunConfig
from smooth.evaluate import networks
from tests.shards import png, sample, write_ingest


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty ones of both hubs."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def put(file: str) -> None:
    path = Path(networks.hub_path(file))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")


@pytest.mark.parametrize("home", ["TORCH_HOME", "XDG_CACHE_HOME", None])
def test_torchs_hub_is_where_torch_has_it(home: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home:
        monkeypatch.setenv(home, str(tmp_path / "set"))
    assert networks.hub_path("file") == str(Path(torch.hub.get_dir(), "checkpoints", "file"))


def test_whether_a_network_is_at_hand_is_asked_without_torch() -> None:
    asked = "from smooth.evaluate import networks; from smooth.config import EvaluateConfig; import sys; "
    asked += "print(networks.names(EvaluateConfig()), 'torch' in sys.modules, 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert found.stdout.split("}")[1].split() == ["False", "False"]


def test_part_of_a_cached_model_is_not_at_hand(caches: Path) -> None:
    cached = caches / "hub" / "models--facebook--dinov2-large"
    (cached / "snapshots" / "revision").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("revision")
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert networks.names(EvaluateConfig()) == {"efficientnet"}
        (cached / "snapshots" / "revision" / file).write_text("{}")
    assert networks.names(EvaluateConfig()) == {"efficientnet", "dinov2"}


def test_a_finished_evaluation_is_to_do_once_another_network_is_at_hand(tmp_path: Path) -> None:
    config = RunConfig.load("tiny", [f"storage.root={tmp_path}"])
    ingest = write_ingest(config.stage_dir("ingest"), [{"0": sample(png(np.zeros((64, 64, 3), np.uint8)), "a hat")}])

    kept: dict[str, Any] = {networks.PER_PROMPT: {}}

    def status(*measured: str) -> str:
        manifest = {"ingest": ingest["digest"], "networks": dict.fromkeys(measured, "identity"), **kept}
        store.write_manifest(config.stage_dir("evaluate"), manifest)
        return stages.status("evaluate", config)

    assert status("efficientnet") == "complete"
    put(networks.ALEXNET_FILE)
    assert status("efficientnet") == "to do"
    assert status("efficientnet", "alexnet") == "complete"
    put(networks.INCEPTION_FILE)
    assert status("efficientnet", "alexnet") == "to do"
    assert status("efficientnet", "clip") == "complete"  # without CLIP it would tell less than it does
    assert status("efficientnet", "alexnet", "inception", "dinov2") == "complete"
    kept.clear()  # as before each prompt's values were kept
    assert status("efficientnet", "alexnet", "inception") == "to do"
    assert status("efficientnet", "alexnet", "inception", "dinov2") == "complete"
