"""The local cluster seen by `smooth doctor`, and saved while it runs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import psutil

from infra.backup.index import verify
from tests.clusters import ScratchCluster


def findings(cluster: ScratchCluster) -> dict[str, dict[str, str]]:
    result = cluster.run("-m", "smooth", "doctor", "--json", HF_HUB_OFFLINE="1")
    assert result.returncode in (0, 1), result.stderr
    return {finding["check"]: finding for finding in json.loads(result.stdout)}


def test_a_cluster_that_runs_answers_with_its_credential(cluster: ScratchCluster) -> None:
    found = findings(cluster)
    for name in ("Ray", "MLflow", "Prefect", "credentials", "clock"):
        assert found[name]["level"] == "ok", found[name]
    ports = [finding for check, finding in found.items() if check.startswith("port of ")]
    assert len(ports) == 4
    assert {finding["found"].split(", ")[1] for finding in ports} == {"in use by this cluster"}


def test_a_backup_holds_what_the_cluster_keeps(cluster: ScratchCluster, tmp_path: Path) -> None:
    result = cluster.run("-m", "infra.backup", "save", "--to", str(tmp_path / "backup"))
    assert result.returncode == 0, result.stderr
    index = verify(tmp_path / "backup")
    assert {"mlflow/mlflow.db", "prefect/prefect.db"} <= set(index.databases)
    token = cluster.layout.token.read_bytes()
    assert token
    assert [path for path in (tmp_path / "backup").rglob("*") if path.is_file() and token in path.read_bytes()] == []


def test_a_service_that_is_gone_is_told(cluster: ScratchCluster) -> None:
    server = psutil.Process(cluster.status()["mlflow"]["pid"])
    for process in (server, *server.children(recursive=True)):  # a worker alone would go on answering
        with suppress(psutil.NoSuchProcess):  # it ended with its parent
            process.kill()
    assert findings(cluster)["MLflow"]["level"] == "error"
    assert cluster.local("up").returncode == 0
    assert findings(cluster)["MLflow"]["level"] == "ok"
