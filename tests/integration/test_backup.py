"""A backup taken under load, restored in another place: MLflow and Prefect there tell and serve the same.

The databases that come back are those of older servers, one migration behind: an upgrade, too.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from alembic import command
from mlflow import MlflowClient
from mlflow.store.db.utils import _get_alembic_config
from PIL import Image

from infra.backup.restore import under_way
from infra.local import http
from infra.local.layout import PROJECT, free_ports, program
from smooth import registry, store
from smooth.config import STAGES, RunConfig
from tests.evaluated import SHORT, trained

FLOW = """
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

@task(persist_result=True)
def measure() -> float:
    create_markdown_artifact("**ISTD 1.25**", key="kept")
    return 1.25

@flow(flow_run_name="kept", persist_result=True)
def kept() -> float:
    return measure()

kept()
"""
METRIC = {"name": "ISTD", "value": 1.25, "low": 1.2, "high": 1.3, "n": 40, "stamp": {}, "note": "", "model": "smooth"}
START_SECONDS = 240  # where others compute


@dataclass(frozen=True)
class Servers:
    """MLflow and Prefect of one home."""

    mlflow: str
    prefect: str

    def flow_runs(self) -> list[dict[str, Any]]:
        return self._all("flow_runs")

    def artifacts(self) -> list[dict[str, Any]]:
        return self._all("artifacts")

    def post(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = http.request(f"{self.prefect}/{what}/", body=body)
        assert answer is not None
        assert answer[0] in (200, 201), answer
        made: dict[str, Any] = json.loads(answer[1])
        return made

    def _all(self, what: str) -> list[dict[str, Any]]:
        answer = http.request(f"{self.prefect}/{what}/filter", body={"limit": 100})
        assert answer is not None
        assert answer[0] == 200
        found: list[dict[str, Any]] = json.loads(answer[1])
        return found


@contextmanager
def serving(home: Path) -> Iterator[Servers]:
    """The two servers on ports of their own, with the files where the local cluster has them."""
    ports = free_ports(2)
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    (home / "mlflow").mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PREFECT_"))}
    environment |= {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{home}/mlflow/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": f"{home}/mlflow/artifacts",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_HOME": f"{home}/prefect",
        "PREFECT_API_URL": f"{addresses[1]}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    commands = [
        [program("mlflow"), "server", "--workers=1", "--host=127.0.0.1", f"--port={ports[0]}"],
        [program("prefect"), "server", "start", "--host=127.0.0.1", f"--port={ports[1]}"],
    ]
    with ExitStack() as stack:
        started = []
        for command in commands:
            log = stack.enter_context((home.parent / f"{Path(command[0]).name}.log").open("w+"))
            server = subprocess.Popen(
                command, env=environment, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            stack.callback(stop, server)
            started.append((server, log))
        health = [f"{addresses[0]}/health", f"{addresses[1]}/api/health"]
        deadline = time.monotonic() + START_SECONDS
        for url, (server, log) in zip(health, started, strict=True):
            while not http.is_ok(url):
                log.seek(0)
                assert server.poll() is None, log.read()
                assert time.monotonic() < deadline, log.read()
                time.sleep(0.3)
        yield Servers(addresses[0], f"{addresses[1]}/api")


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop it with its workers."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def run(*words: str, **places: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | places
    result = subprocess.run(
        [sys.executable, *words], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@contextmanager
def logging(client: MlflowClient, run_id: str) -> Iterator[None]:
    """A training that goes on: one value a step, without a pause."""
    end, begun = threading.Event(), threading.Event()

    def log() -> None:
        step = 0
        while not end.is_set():
            client.log_metric(run_id, "under_way", step, step=step)
            step += 1
            if step == 20:
                begun.set()

    thread = threading.Thread(target=log)
    thread.start()
    try:
        assert begun.wait(600)
        yield
    finally:
        end.set()
        thread.join()


def told(client: MlflowClient) -> dict[str, Any]:
    """All that a person sees of runs and models, without what goes on growing."""
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    models = client.search_registered_models()
    versions = client.search_model_versions()
    return {
        "runs": [
            (
                *(each.info.run_id, each.info.run_name, each.info.status, each.info.start_time, each.info.artifact_uri),
                *(each.data.params, each.data.tags),
                {name: value for name, value in each.data.metrics.items() if name != "under_way"},
            )
            for each in runs
        ],
        "artifacts": [artifact.path for each in runs for artifact in client.list_artifacts(each.info.run_id)],
        "aliases": [(model.name, model.aliases, model.description) for model in models],
        "versions": [(each.version, each.run_id, each.source, each.tags, each.description) for each in versions],
    }


def drawn(uri: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What the production model of a server paints."""
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/smooth-diffusion@production")
    (png,) = model.predict({"prompt": ["a red heart"], "seed": [7]})
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture)


@dataclass(frozen=True)
class Before:
    """What the first home was like when it was saved."""

    home: Path
    run_id: str
    told: dict[str, Any]
    flow_runs: list[dict[str, Any]]
    artifacts: list[dict[str, Any]]
    picture: np.ndarray[Any, np.dtype[np.uint8]]


def fill(home: Path, base: str, servers: Servers) -> tuple[MlflowClient, str]:
    """A chain up to a production model, a flow run, and a run that is under way."""
    with ThreadPoolExecutor(1) as pool:
        flow_run = pool.submit(run, "-c", FLOW, PREFECT_API_URL=servers.prefect, PREFECT_HOME=str(home / "prefect"))
        config = trained(base, home / "artifacts")
        flow_run.result()
    metrics = {"stage": "evaluate", "metrics": [METRIC], "pictures": [], "networks": {}, "ingest": "synthetic"}
    store.write_manifest(config.stage_dir("evaluate"), metrics)
    registered = registry.run(config)
    client = MlflowClient(servers.mlflow)
    client.set_registered_model_alias("smooth-diffusion", "production", str(registered["version"]))
    _flow_under_way(servers)
    (experiment,) = client.search_experiments(filter_string="name = 'evaluate-test'")
    return client, client.create_run(experiment.experiment_id, run_name="under way").info.run_id


def _flow_under_way(servers: Servers) -> None:
    flow = servers.post("flows", {"name": "long"})
    servers.post("flow_runs", {"flow_id": flow["id"], "name": "long", "state": {"type": "RUNNING"}})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_base: str) -> Iterator[tuple[Before, Path]]:
    """A home that was filled, saved while its servers worked, and then taken away."""
    root = tmp_path_factory.mktemp("backup")
    home = root / "first"
    with pytest.MonkeyPatch.context() as patch, serving(home) as servers:
        patch.setenv("MLFLOW_TRACKING_URI", servers.mlflow)
        client, run_id = fill(home, tiny_base, servers)
        with logging(client, run_id):
            run("-m", "infra.backup", "save", "--to", str(root / "backup"), SMOOTH_HOME=str(home))
        before = Before(
            root / "moved", run_id, told(client), servers.flow_runs(), servers.artifacts(), drawn(servers.mlflow)
        )
    home.rename(before.home)  # nothing restored can lean on it
    yield before, root / "backup"
    mlflow.set_tracking_uri("")


@pytest.fixture(scope="module")
def restored(saved: tuple[Before, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Servers]]:
    home = tmp_path_factory.mktemp("elsewhere") / "deep" / "second"
    run("-m", "infra.backup", "restore", "--from", str(saved[1]), SMOOTH_HOME=str(home))
    now = schemas(home)
    set_back(home)
    older = schemas(home)
    assert older[0] != now[0]
    assert older[1] != now[1]
    with serving(home) as servers:
        assert schemas(home) == now
        yield home, servers


def schemas(home: Path) -> list[str]:
    """The migrations that MLflow's and Prefect's databases are at."""
    found = []
    for name in ("mlflow/mlflow.db", "prefect/prefect.db"):
        with closing(sqlite3.connect(home / name)) as connection:
            found += [str(row[0]) for row in connection.execute("SELECT version_num FROM alembic_version")]
    return found


def set_back(home: Path) -> None:
    """Undo the last migration of both, by their own programs."""
    command.downgrade(_get_alembic_config(f"sqlite:///{home}/mlflow/mlflow.db"), "-1")
    run("-m", "prefect", "server", "database", "downgrade", "--yes", PREFECT_HOME=str(home / "prefect"))


def test_the_same_runs_models_and_aliases(saved: tuple[Before, Path], restored: tuple[Path, Servers]) -> None:
    before = saved[0]
    client = MlflowClient(restored[1].mlflow)
    found = told(client)
    assert found == before.told
    assert found["aliases"][0][1].keys() == {"candidate", "production"}
    assert found["artifacts"]
    places = [run[4] for run in found["runs"]] + [version[2] for version in found["versions"]]
    assert {place.partition(":")[0] for place in places} == {"mlflow-artifacts", "models"}, "paths of the first home"
    history = client.get_metric_history(before.run_id, "under_way")
    assert [metric.step for metric in history] == list(range(len(history)))
    assert len(history) >= 20


def test_the_same_flow_runs(saved: tuple[Before, Path], restored: tuple[Path, Servers]) -> None:
    before, servers = saved[0], restored[1]
    runs, then = servers.flow_runs(), before.flow_runs
    for key in ("id", "name", "state", "start_time", "end_time"):
        assert sorted(str(run[key]) for run in runs) == sorted(str(run[key]) for run in then)
    assert {run["name"]: run["state"]["type"] for run in runs} == {"kept": "COMPLETED", "long": "RUNNING"}
    assert under_way(restored[0]) == 1
    assert servers.artifacts() == before.artifacts
    assert [artifact["data"] for artifact in before.artifacts if artifact["key"] == "kept"] == ["**ISTD 1.25**"]


def test_the_production_model_paints_the_same(saved: tuple[Before, Path], restored: tuple[Path, Servers]) -> None:
    assert np.array_equal(drawn(restored[1].mlflow), saved[0].picture)


def test_finished_stages_are_found_where_they_are_now(restored: tuple[Path, Servers], tiny_base: str) -> None:
    artifacts = restored[0] / "artifacts"
    config = RunConfig.load("tiny", [f"model.base={tiny_base}", f"storage.root={artifacts}", *SHORT])
    assert [stage for stage in STAGES if not store.is_complete(config.stage_dir(stage))] == []
    assert store.read_manifest(config.stage_dir("register"))["version"] == 1
