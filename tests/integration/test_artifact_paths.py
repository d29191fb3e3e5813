"""The local cluster's MLflow, asked for what lies outside of its artifacts: nothing there is read or written."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.clusters import ScratchCluster

CANARY = "canary of the test"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
# After the proxy's path, or as `path=`: each decodes, once or more, to something above the artifacts.
ESCAPES = [
    "../{name}",
    "..%2f{name}",
    "%2e%2e/{name}",
    "%2e%2e%2f{name}",
    "%252e%252e%252f{name}",
    "%25252e%25252e%25252f{name}",
    "x/../../{name}",
    "x/..%2f..%2f{name}",
    "./../{name}",
    "..",
    "%2e%2e",
    "/{absolute}",
    "%2F{absolute}",
    "file://{absolute}",
    "file:{absolute}",
    "file%3A%2F%2F{absolute}",
    "..;/{name}",
    "..%00/{name}",
    "..%5c{name}",
    "~/../../{name}",
]
SOURCES = [
    "file://{folder}",
    "file://localhost{folder}",
    "FILE://{folder}",
    "file:{folder}",
    "{folder}",
    "//{folder}",
    "file:///etc",
    "file:///etc#x",
    "..",
    "mlflow-artifacts:/../..",
    "mlflow-artifacts:/x/%2e%2e/%2e%2e",
    "mlflow-artifacts:/..%2f..%2fetc",
    "mlflow-artifacts://elsewhere/x",
    "runs:/{run}/../../..",
    "models:/{model}/../..",
    "http://127.0.0.1/x",
    "s3://bucket/x",
    "dbfs:/x",
]
LOCATIONS = [
    "file://{folder}",
    "{folder}",
    "file:///etc",
    "mlflow-artifacts:/../../x",
    "mlflow-artifacts:/0",
    "s3://b/x",
]


class Server:
    """The server with nothing of a client in between that would mend a path."""

    def __init__(self, cluster: ScratchCluster) -> None:
        parts = urlsplit(cluster.state["mlflow_uri"])
        self._host, self._port = parts.hostname or "", parts.port
        self.folder = cluster.layout.home / "mlflow"

    def ask(self, method: str, path: str, body: bytes | dict[str, Any] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=60)
        sent = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.putrequest(method, path)
        if sent is not None:
            connection.putheader("Content-Type", "application/json" if isinstance(body, dict) else "text/plain")
            connection.putheader("Content-Length", str(len(sent)))
        connection.endheaders(sent)
        response = connection.getresponse()
        found = response.status, response.read()
        connection.close()
        return found

    def made(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, content = self.ask("POST", f"/api/2.0/mlflow/{path}", body)
        assert status == 200, content
        return dict(json.loads(content))


@pytest.fixture
def server(cluster: ScratchCluster) -> Server:
    return Server(cluster)


@pytest.fixture
def canary(server: Server) -> Path:
    path = server.folder / "canary.txt"
    path.write_text(CANARY)
    return path


def outside(server: Server) -> set[Path]:
    """What lies beside the artifacts; SQLite's own files come and go."""
    beside = server.folder.parent.rglob("*")
    hidden = (server.folder / "artifacts", server.folder.parent / "cluster", server.folder.parent / "prefect")
    return {path for path in beside if not path.is_relative_to(hidden[0]) and not path.is_relative_to(hidden[1])
            and not path.is_relative_to(hidden[2]) and ".db" not in path.name}  # fmt: skip


def test_no_path_leads_out_of_the_artifacts(server: Server, canary: Path) -> None:
    run = server.made("runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    before = outside(server)
    for escape in ESCAPES:
        path = escape.format(name=canary.name, absolute=canary)
        for method, url, body in (
            ("GET", f"{PROXY}/{path}", None),
            ("PUT", f"{PROXY}/{path}", b"overwritten"),
            ("DELETE", f"{PROXY}/{path}", None),
            ("GET", f"{PROXY}?path={path}", None),
            ("POST", f"/api/2.0/mlflow-artifacts/mpu/create/{path}", {"path": path, "num_parts": 1}),
            ("GET", f"/get-artifact?run_id={run}&path={path}", None),
            ("GET", f"/api/2.0/mlflow/artifacts/list?run_id={run}&path={path}", None),
            ("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path={path}", b"overwritten"),
        ):
            status, content = server.ask(method, url, body)
            assert CANARY.encode() not in content, (method, url)
            assert b"canary.txt" not in content or status >= 300, (method, url, content)
            assert canary.read_text() == CANARY, (method, url)
            assert outside(server) == before, (method, url)
            # A backslash or a semicolon is a letter of a name here: such a name lies within the artifacts.
            assert status >= 300 or "%5c" in url or ";" in url or "%00" in url, (method, url, status, content)


def test_no_version_of_a_model_comes_from_elsewhere(server: Server, canary: Path) -> None:
    run = server.made("runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    model = server.made("registered-models/create", {"name": "hostile"})["registered_model"]["name"]
    for source in SOURCES:
        filled = source.format(folder=canary.parent, run=run, model=model)
        for more in ({}, {"run_id": run}):
            body = {"name": model, "source": filled} | more
            status, content = server.ask("POST", "/api/2.0/mlflow/model-versions/create", body)
            assert status == 400, (filled, content)


def test_no_experiment_puts_artifacts_elsewhere(server: Server, canary: Path) -> None:
    for index, location in enumerate(LOCATIONS):
        filled = location.format(folder=canary.parent)
        for key in ("artifact_location", "artifactLocation"):
            body = {"name": f"hostile-{index}-{key}", key: filled}
            status, content = server.ask("POST", "/api/2.0/mlflow/experiments/create", body)
            assert status == 400, (filled, content)
    experiment = server.made("experiments/create", {"name": "harmless"})["experiment_id"]
    info = server.made("runs/create", {"experiment_id": experiment})["run"]["info"]
    assert info["artifact_uri"].startswith(f"mlflow-artifacts:/{experiment}/")
    upload = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={info['run_id']}&path=kept.txt"
    assert server.ask("POST", upload, b"kept")[0] == 200
    assert server.ask("GET", f"/get-artifact?run_id={info['run_id']}&path=kept.txt") == (200, b"kept")
