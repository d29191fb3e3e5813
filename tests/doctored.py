"""What the tests of `smooth doctor` share: a place of their own, servers on loopback that answer as they are told."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from huggingface_hub import constants

from infra.local import layout
from smooth.config import RunConfig
from smooth.doctor import services
from smooth.doctor.finding import Finding

LOOPBACK = "127.0.0.1"
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
REMOTE = "model.base=someone/some-model"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, caches and a working directory of the test's own; the hub's name is nobody's."""
    for name in (*VARIABLES, *(port.variable for port in services.PORTS)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMOOTH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{LOOPBACK}:{closed_port()}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def closed_port() -> int:
    return layout.free_ports(1)[0]


def config(*overrides: str) -> RunConfig:
    return RunConfig.load("tiny", list(overrides))


class Answering(BaseHTTPRequestHandler):
    """Answers everything alike."""

    status, headers_, body, skew = 200, dict[str, str](), b"{}", 0.0
    seen: ClassVar[list[str | None]] = []

    def _answer(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        for name, value in self.headers_.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    do_GET = do_POST = do_HEAD = _answer  # noqa: N815 - http.server's names

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() + self.skew, usegmt=True)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def server(tls: ssl.SSLContext | None = None, **answer: Any) -> Iterator[str]:
    handler = type("Handler", (Answering,), {"headers_" if key == "headers" else key: v for key, v in answer.items()})
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as listening:
        if tls is not None:
            listening.socket = tls.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://{LOOPBACK}:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of a few bytes; needs the right to mount."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def record(home: Path, **addresses: str) -> None:
    """What the local cluster writes down while it is up."""
    (home / "cluster").mkdir(parents=True, exist_ok=True)
    (home / "cluster" / "state.json").write_text(json.dumps(addresses))


def only(findings: list[Finding], check: str) -> Finding:
    (found,) = (finding for finding in findings if finding.check == check)
    return found
