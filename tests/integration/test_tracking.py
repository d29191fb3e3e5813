"""Runs on a real MLflow store (SQLite): one run per training, nothing secret, nothing lost on failure."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from smooth import store, tracking
from smooth.config import RunConfig

OVERRIDES = ["model.base=example/base", "experiment=tracking-test"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    return RunConfig.load("tiny", [*OVERRIDES, "storage.root=memory://user:pa/ss@bucket/root"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://AKIA:abc/d+e=@bucket/x", "s3://***@bucket/x"),
        ("https://user:pw@host:80/a", "https://***@host:80/a"),
        ("https://token@host/a", "https://***@host/a"),
        ("https://h/a?X-Amz-Signature=ff&size=2", "https://h/a?X-Amz-Signature=***&size=2"),
        ("https://host:8080/a?size=2", "https://host:8080/a?size=2"),
        ("models:/smooth-diffusion@candidate", "models:/smooth-diffusion@candidate"),
        ('{"root": "s3://k:s@b", "n": 1}', '{"root": "s3://***@b", "n": 1}'),
    ],
)
def test_redacts_credentials_and_nothing_else(text: str, expected: str) -> None:
    assert tracking.redact(text) == expected


def test_run_holds_parameters_lineage_metrics_and_no_secret(config: RunConfig, tmp_path: Path) -> None:
    ingested = {"rows": 3, "kept": 2, "digest": "ab" * 32, "source": "https://u:pw@host/list", "licence": "CC0-1.0"}
    store.write_manifest(config.stage_dir("ingest"), ingested | {"pictures": ["funnel.png"]})
    picture = tmp_path / "grid.png"
    with io.BytesIO() as data:
        Image.new("RGB", (8, 8), "red").save(data, "PNG")
        picture.write_bytes(data.getvalue())
        store.write_bytes(store.join(config.stage_dir("ingest"), "funnel.png"), data.getvalue())
    with tracking.start_run(config, "first", {"smooth.note": "x"}) as run:
        for step in range(600):
            run.log_metrics({"loss": 1.0 / (1 + step), "norm": 2.0}, step)
        run.log_picture(str(picture), "validation", step=7)

    client = MlflowClient(tracking.tracking_uri())
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["train.lora.rank"] == "8"
    assert found.data.params["storage.root"] == "memory://***@bucket/root"
    assert found.data.tags["smooth.fingerprint.latents"] == config.fingerprint("latents")
    assert [point.step for point in client.get_metric_history(run.run_id, "loss")] == list(range(600))
    assert client.download_artifacts(run.run_id, "validation/grid.png", str(tmp_path)).endswith("grid.png")
    assert any("step" in item.path and "7" in item.path for item in client.list_artifacts(run.run_id, "images"))
    manifest = Path(client.download_artifacts(run.run_id, "manifests/ingest/manifest.json", str(tmp_path))).read_text()
    assert '"rows": 3' in manifest
    assert "https://***@host/list" in manifest
    (used,) = found.inputs.dataset_inputs
    assert used.dataset.digest == "ab" * 16
    assert used.dataset.source.startswith('{"uri": "memory://***@bucket/root/ingest/')
    assert json.loads(used.dataset.profile) == {"rows": 2, "source": "https://***@host/list", "licence": "CC0-1.0"}
    assert [item.path for item in client.list_artifacts(run.run_id, "ingest")] == ["ingest/funnel.png"]


def test_failure_flushes_and_the_retry_continues_the_same_run(config: RunConfig) -> None:
    client = MlflowClient(tracking.tracking_uri())

    def fail() -> None:
        with tracking.start_run(config, "first") as run:
            run.log_metrics({"loss": 1.0}, 0)
            raise RuntimeError(run.run_id)

    with pytest.raises(RuntimeError) as failure:
        fail()
    first = client.get_run(str(failure.value))
    assert first.info.status == "FAILED"
    assert first.data.metrics["loss"] == 1.0

    faster = RunConfig.load("tiny", [*OVERRIDES, "train.micro_batch_size=2"])
    assert faster.fingerprint("train") == config.fingerprint("train")
    with tracking.start_run(faster, "second") as second:
        second.log_metrics({"loss": 0.5}, 1)
    assert second.run_id == first.info.run_id
    tags = client.get_run(second.run_id).data.tags
    assert tags["smooth.resumed.train.micro_batch_size"] == "2"

    with tracking.start_run(config, "third") as third:
        assert client.get_run(third.run_id).info.status == "RUNNING"
    assert third.run_id != first.info.run_id, "a finished training must not be written over"


def test_judging_a_finished_run_leaves_its_status(config: RunConfig) -> None:
    client = MlflowClient(tracking.tracking_uri())
    with tracking.start_run(config, "first") as run:
        pass
    with tracking.resume_run(run.run_id) as again:
        again.log_metrics({"evaluate/istd_base": 2.0})
        again.set_tags({"smooth.fingerprint.evaluate": "abc"})
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["evaluate/istd_base"] == 2.0
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"), tracking.resume_run("0" * 32):
        pass


def test_system_metrics_are_sampled(config: RunConfig) -> None:
    client = MlflowClient(tracking.tracking_uri())
    deadline = time.monotonic() + 120
    with tracking.start_run(config, "first") as run:
        while "system/cpu_utilization_percentage" not in client.get_run(run.run_id).data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.05)
