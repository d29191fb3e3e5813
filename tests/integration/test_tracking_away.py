"""An MLflow server that is killed under a training and does not come back: nothing is lost, and the message says so."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from infra.local import http
from infra.local.layout import free_ports, program
from smooth import tracked, tracking
from smooth.config import RunConfig
from smooth.outbox import FOLDER, AwayError

STEPS = 1200


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def server(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A real one, and the settings that lead to it."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the tests' patience, not a training's
    command = [program("mlflow"), "server", "--workers=1", f"--port={port}", f"--backend-store-uri={database}",
               f"--artifacts-destination={tmp_path}/artifacts"]  # fmt: skip
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while not http.is_ok(f"{url}/health"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """With its workers."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()


def test_what_it_has_not_seen_is_kept_and_sent_by_the_next_attempt(
    server: subprocess.Popen[bytes], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked, "SETTLE_SECONDS", 1.0)
    config = RunConfig.load("tiny", ["model.base=example/base", f"storage.root={tmp_path}/store"])
    slowest_s = 0.0

    def train() -> None:
        nonlocal slowest_s
        with tracking.start_run(config, "first") as run:
            for step in range(STEPS):
                if step == STEPS // 2:
                    kill(server)
                begun = time.monotonic()
                run.log_metrics({"loss": 1.0 / (1 + step)}, step)
                slowest_s = max(slowest_s, time.monotonic() - begun)
            run.settle()

    with pytest.raises(AwayError, match=r"has not answered for.*Nothing is lost.*run this again") as failure:
        train()
    assert "make cluster-up" in str(failure.value)
    assert slowest_s < 30  # training did not wait for it
    kept = Path(config.stage_dir("train"), FOLDER)
    assert list(kept.glob("*.json"))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)  # it is back, at another address
    with tracking.start_run(config, "second") as run:
        run.settle()
    client = MlflowClient(database)
    assert sorted(point.step for point in client.get_metric_history(run.run_id, "loss")) == list(range(STEPS))
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert not list(kept.glob("*.json"))
