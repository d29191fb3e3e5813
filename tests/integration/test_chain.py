"""The chain end to end on a small slice: HTTP, img2dataset, Ray, DeepSpeed, MLflow and Prefect, as a user runs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from smooth import store
from smooth.config import STAGES, RunConfig
from tests.clusters import ScratchCluster

PNG = b"\x89PNG\r\n\x1a\n"
SLICE = [
    "ingest.demo_web.pictures=48", "ingest.demo_web.fault_share=0.25", "ingest.shard_size=32", "ingest.timeout_s=2",
    "train.steps=2", "train.global_batch_size=4", "train.micro_batch_size=2", "train.validate_every=2",
    "train.checkpoint_every=2", "train.istd_every=null", "evaluate.prompts=2", "evaluate.frames=3",
    "evaluate.pictures=8", "evaluate.steps=2", "evaluate.strips=1", "evaluate.reconstructions=2", "evaluate.actors=1",
]  # fmt: skip


def overrides(tmp_path: Path) -> list[str]:
    return [f"storage.root={tmp_path}", *SLICE]


def demo(cluster: ScratchCluster, changes: list[str]) -> subprocess.CompletedProcess[str]:
    return cluster.run("-m", "flows.demo", *(part for change in changes for part in ("-o", change)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def config(root: Path) -> RunConfig:
    return RunConfig.load("tiny", overrides(root))


@pytest.fixture(scope="module")
def first(cluster: ScratchCluster, root: Path) -> subprocess.CompletedProcess[str]:
    """The chain, run once for all tests of this file."""
    return demo(cluster, overrides(root))


def test_every_stage_runs_and_the_result_is_shown(first: subprocess.CompletedProcess[str], config: RunConfig) -> None:
    assert first.returncode == 0, first.stdout + first.stderr
    assert all(store.is_complete(config.stage_dir(stage)) for stage in STAGES)
    for number, stage in enumerate(STAGES, start=1):
        assert f"{number}/5 {stage}" in first.stdout
    assert "ISTD" in first.stdout
    assert "KID (EfficientNet-Lite0)" in first.stdout
    assert "registered smooth-diffusion version" in first.stdout


@pytest.mark.usefixtures("first")
def test_every_row_of_the_list_is_accounted_for(config: RunConfig) -> None:
    manifest = store.read_manifest(config.stage_dir("ingest"))
    assert manifest["kept"] == 48
    counted = manifest["kept"] + sum(manifest["refused"].values()) + sum(manifest["failed"].values())
    assert counted == manifest["rows"]
    assert store.read_manifest(config.stage_dir("latents"))["rows"] == 48


@pytest.mark.usefixtures("first")
def test_mlflow_holds_the_run_its_pictures_and_the_candidate(cluster: ScratchCluster, config: RunConfig) -> None:
    client = MlflowClient(cluster.state["mlflow_uri"])
    version = client.get_model_version_by_alias("smooth-diffusion", "candidate")
    assert version.version == str(store.read_manifest(config.stage_dir("register"))["version"])
    run = client.get_run(store.read_manifest(config.stage_dir("train"))["run_id"])
    assert version.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    for stage in ("ingest", "latents", "train"):
        assert run.data.tags[f"smooth.fingerprint.{stage}"] == config.fingerprint(stage)
    assert {"loss", "regularizer", "norm", "target", "learning_rate"} <= set(run.data.metrics)
    (data,) = run.inputs.dataset_inputs
    assert store.read_manifest(config.stage_dir("ingest"))["digest"].startswith(data.dataset.digest)
    assert [item.path for item in client.list_artifacts(run.info.run_id, "ingest")] == ["ingest/funnel.png"]
    pictures = [item.path for item in client.list_artifacts(run.info.run_id, "evaluate") if item.path.endswith(".png")]
    assert {Path(picture).name for picture in pictures} >= {"strips.png", "curves.png"}
    folder = Path(client.download_artifacts(run.info.run_id, "evaluate"))
    assert all((folder / Path(picture).name).read_bytes().startswith(PNG) for picture in pictures)


@pytest.mark.usefixtures("first")
def test_unchanged_inputs_are_not_run_again(cluster: ScratchCluster, config: RunConfig, root: Path) -> None:
    manifests = [Path(config.stage_dir(stage), store.MANIFEST) for stage in STAGES]
    written = [manifest.stat().st_mtime_ns for manifest in manifests]
    again = demo(cluster, overrides(root))
    assert again.returncode == 0, again.stdout + again.stderr
    assert [manifest.stat().st_mtime_ns for manifest in manifests] == written
    assert "registered smooth-diffusion version" in again.stdout


@pytest.mark.usefixtures("first")
def test_a_sweep_concludes_from_what_did_not_fail(cluster: ScratchCluster, config: RunConfig, root: Path) -> None:
    """One arm is the chain's own training, one names no layer, and the control is new."""
    parameters = {
        "overrides": [*overrides(root), "train.workers=1"],  # which no result depends on; faster to start
        "weights": [config.train.variation.weight],
        "ranks": [],
        "also": ["train.lora.targets=[nothing]"],
        "seeds": [config.seed],
        "parallel": 2,
    }
    chosen = [part for name, value in parameters.items() for part in ("--param", f"{name}={json.dumps(value)}")]
    result = cluster.run("-m", "prefect", "deployment", "run", "smooth-sweep/grid", "--watch", *chosen,
                         PREFECT_API_URL=cluster.state["prefect_api"])  # fmt: skip
    assert result.returncode != 0
    (folder,) = (root / "sweep").iterdir()
    manifest = store.read_manifest(str(folder))
    assert "stage train failed: train.lora.targets" in manifest["failed"]["train.lora.targets=[nothing]"]
    assert list(manifest["arms"]) == ["λ = 0, control", "λ = 100"]
    assert manifest["arms"]["λ = 100"] == [config.fingerprint("train")]
    assert (folder / "pareto.png").read_bytes().startswith(PNG)
    client = MlflowClient(cluster.state["mlflow_uri"])
    names = {item.path for item in client.list_artifacts(manifest["run_id"], "sweep")}
    assert names == {"sweep/pareto.png", "sweep/table.md", "sweep/results.json"}
    child = client.get_run(store.read_manifest(config.stage_dir("train"))["run_id"])
    assert child.data.tags["mlflow.parentRunId"] == manifest["run_id"]


def test_a_bad_override_ends_the_demo_with_the_key(cluster: ScratchCluster) -> None:
    result = demo(cluster, ["train.step=3"])
    assert result.returncode == 1
    assert "unknown key train.step; nearest is train.steps" in result.stderr
