"""Registered versions and the services that serve them: MLflow's servers and `smooth serve`, as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infra.local import http
from infra.local.layout import program
from smooth import registry, store
from smooth.config import RunConfig
from tests.evaluated import trained, write_adapter

PATIENCE = 300.0  # seconds, on a machine that does other things, too
CLIENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def register(base: str, root: Path, scale: float) -> tuple[RunConfig, dict[str, Any]]:
    """A version whose LoRA has weights of ``scale``; needs ``MLFLOW_TRACKING_URI``. Its alias is ``candidate``."""
    config = trained(base, root, f"train.learning_rate={scale}")  # another training
    write_adapter(base, config.stage_dir("train"), scale)
    if not store.is_complete(config.stage_dir("evaluate")):
        store.write_manifest(config.stage_dir("evaluate"), {"stage": "evaluate", "metrics": [], "pictures": []})
    return config, registry.run(config)


@contextmanager
def running(
    command: list[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A service while it is wanted, with its output in ``log``; it is ended by SIGTERM, and then what it left."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **CLIENT, **(environment or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(found: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a service; fail with the end of its log where it ends first, or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not found():
        ended = process.poll() is not None
        assert not ended and time.monotonic() < deadline, log.read_text()[-4000:]  # noqa: PT018
        time.sleep(0.1)


def mlflow_server(root: Path, port: int) -> list[str]:
    """The command of a tracking server with a registry on SQLite."""
    return [
        *(program("mlflow"), "server", "--workers=1", "--host=127.0.0.1", f"--port={port}"),
        f"--backend-store-uri=sqlite:///{root / 'mlflow.db'}",
        f"--artifacts-destination={root / 'mlflow-artifacts'}",
    ]


def smooth(*arguments: str) -> list[str]:
    """A command of ours."""
    return [sys.executable, "-m", "smooth", *arguments]


def is_up(url: str) -> Callable[[], bool]:
    """Whether a service answers 200."""
    return lambda: http.is_ok(url)
