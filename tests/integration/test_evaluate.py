"""The evaluate stage on real Ray actors and a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from smooth import store, tracking
from smooth.config import ConfigError, RunConfig
from smooth.evaluate import run as stage
from smooth.evaluate.protocol import Protocol
from tests.evaluated import trained

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(autouse=True)
def mlflow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")


@pytest.fixture(scope="module")
def finished(root: Path, tiny_base: str) -> tuple[RunConfig, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        config = trained(tiny_base, root / "artifacts", "evaluate.actors=1")
        return config, stage.run(config)


def base_folder(config: RunConfig) -> Path:
    (folder,) = Path(config.stage_dir("evaluate")).parent.glob("base-*")
    return folder


def test_metrics_pictures_and_lineage_are_where_people_look(finished: tuple[RunConfig, dict[str, Any]]) -> None:
    config, manifest = finished
    folder = Path(config.stage_dir("evaluate"))
    metrics = {(m["name"], m["model"]): m for m in json.loads((folder / "metrics.json").read_text())}
    base, smooth = metrics["ISTD", "base"], metrics["ISTD", "smooth"]
    assert base["stamp"] == smooth["stamp"]
    assert base["n"] == 2
    assert base["value"] != smooth["value"]
    assert metrics["ISTD", "smooth - base"]["value"] == pytest.approx(smooth["value"] - base["value"])
    kid = metrics["KID (EfficientNet-Lite0) x1000", "smooth"]
    assert kid["low"] < kid["value"] < kid["high"]
    assert "raise evaluate.prompts" in metrics["sample diversity", "smooth"]["note"]  # there are two
    assert "Inception" in metrics["FID (Inception-v3)", "base"]["note"]
    assert manifest["summary"]["ISTD base"] == pytest.approx(base["value"], abs=1e-4)
    for name in manifest["pictures"]:
        with Image.open(folder / name) as picture:
            assert picture.width > 400

    client = MlflowClient(tracking.tracking_uri())
    run = client.get_run(manifest["run_id"])
    assert run.data.metrics["evaluate/istd_base"] == pytest.approx(base["value"])
    assert run.data.metrics["evaluate/istd_smooth"] == pytest.approx(smooth["value"])
    names = {item.path for item in client.list_artifacts(manifest["run_id"], "evaluate")}
    assert names >= {"evaluate/strips.png", "evaluate/curves.png", "evaluate/metrics.json"}


def test_finished_stage_is_reused(finished: tuple[RunConfig, dict[str, Any]]) -> None:
    config, manifest = finished
    assert stage.run(config) == manifest


def test_two_actors_make_the_same_pictures_and_share_the_base(
    finished: tuple[RunConfig, dict[str, Any]], tiny_base: str, root: Path
) -> None:
    """A second adapter (another training) reuses the base's measurement; two actors see what one saw."""
    config, _ = finished
    one = np.load(base_folder(config) / "base.npz")
    again = trained(tiny_base, root / "other", "evaluate.actors=2")
    stage.run(again)
    two = np.load(base_folder(again) / "base.npz")
    assert np.array_equal(one["strips"], two["strips"])
    assert np.array_equal(one["distances"], two["distances"])
    assert np.array_equal(one["spreads"], two["spreads"])
    np.testing.assert_allclose(one["features"], two["features"], rtol=1e-5)

    before = (base_folder(config) / "base.npz").stat().st_mtime_ns
    control = trained(tiny_base, root / "artifacts", "evaluate.actors=1", "train.variation.weight=0")
    manifest = stage.run(control)
    assert manifest["fingerprint"] != finished[1]["fingerprint"]
    assert (base_folder(config) / "base.npz").stat().st_mtime_ns == before
    blocks = Path(control.stage_dir("evaluate"), "blocks")
    assert [folder.name for folder in blocks.iterdir()] == ["smooth-3"]


def test_retry_samples_only_what_is_missing(finished: tuple[RunConfig, dict[str, Any]]) -> None:
    config, manifest = finished
    folder = Path(config.stage_dir("evaluate"))
    kept, lost = sorted((folder / "blocks" / "smooth-3").iterdir())[:2]
    bytes_lost, time_kept = lost.read_bytes(), kept.stat().st_mtime_ns
    for path in (lost, folder / "smooth.npz", folder / store.MANIFEST):
        path.unlink()
    again = stage.run(config)
    assert again["metrics"] == manifest["metrics"]
    assert lost.read_bytes() == bytes_lost
    assert kept.stat().st_mtime_ns == time_kept


def test_prompts_of_a_file_and_too_few_of_them(
    finished: tuple[RunConfig, dict[str, Any]], tiny_base: str, root: Path
) -> None:
    file = root / "prompts.txt"
    file.write_text("a red hat\n\na cat\n")
    listed = RunConfig.parse(
        finished[0].model_dump() | {"evaluate": {**finished[0].evaluate.model_dump(), "prompts_file": str(file)}}
    )
    assert Protocol.of(listed).prompts == ("a red hat", "a cat")
    assert Protocol.of(listed).fingerprint != Protocol.of(finished[0]).fingerprint
    file.write_text("a red hat\n")
    with pytest.raises(ConfigError, match=r"has 1 prompts, evaluate\.prompts asks for 2"):
        Protocol.of(listed)
