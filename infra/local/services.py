"""The four services: how each is started, on which ports, and how it tells that it is well."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from infra.local import http
from infra.local.layout import (
    DASHBOARD_PORT,
    HOST,
    MLFLOW_PORT,
    POOL,
    PREFECT_PORT,
    PROJECT,
    RAY_PORT,
    Layout,
    Port,
    free_ports,
    program,
)
from infra.local.processes import MARKER, Record

OURS = ("RAY_", "PREFECT_", "MLFLOW_", "SMOOTH_CLUSTER_")

Ports = Mapping[str, int]
"""Environment variable of a port -> the number in use."""


class Service(ABC):
    """One part of the cluster."""

    name: ClassVar[str]
    title: ClassVar[str]
    ports: ClassVar[tuple[Port, ...]] = ()

    def __init__(self, layout: Layout, ports: Ports) -> None:
        self.layout = layout
        self._numbers = ports

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments."""

    @abstractmethod
    def is_healthy(self, record: Record) -> bool:
        """Whether the service that ``record`` describes does its work."""

    def url(self) -> str | None:
        """Where a person finds it, if it has a page."""
        return None

    def environment(self) -> dict[str, str]:
        """Our settings and the user's environment without theirs, so that a stray variable changes nothing."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
        path = f"{Path(program('python')).parent}{os.pathsep}{inherited.get('PATH', '')}"
        return (
            inherited
            | addresses(self.layout, self._numbers)
            | {
                "PATH": path,
                MARKER: self.layout.marker(self.name),
                "SMOOTH_HOME": str(self.layout.home),
                "SMOOTH_PROJECT": str(PROJECT),
                "PYTHONUNBUFFERED": "1",
                "DO_NOT_TRACK": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "PREFECT_HOME": str(self.layout.home / "prefect"),
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            }
        )

    def number(self, port: Port) -> int:
        """The number of a port in use."""
        return self._numbers[port.variable]


def addresses(layout: Layout, ports: Ports) -> dict[str, str]:
    """The variables that lead a client to this cluster."""
    return {
        "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{ports[DASHBOARD_PORT.variable]}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(layout.token),
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports[MLFLOW_PORT.variable]}",
        "PREFECT_API_URL": f"http://{HOST}:{ports[PREFECT_PORT.variable]}/api",
    }


class RayHead(Service):
    """Ray's head node with its dashboard and job API."""

    name = "ray"
    title = "Ray"
    ports = (RAY_PORT, DASHBOARD_PORT)

    def command(self) -> list[str]:
        """In the foreground: one process owns all others. On free inner ports: two heads fit one machine."""
        inner = ("ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
        return [
            *(program("ray"), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"),
            f"--node-ip-address={HOST}",
            f"--port={self.number(RAY_PORT)}",
            f"--dashboard-host={HOST}",
            f"--dashboard-port={self.number(DASHBOARD_PORT)}",
            f"--num-cpus={max(2, os.cpu_count() or 1)}",
            f"--temp-dir={self.layout.ray_folder}",
            *(f"--{name}={port}" for name, port in zip(inner, free_ports(len(inner)), strict=True)),
        ]

    def is_healthy(self, record: Record) -> bool:  # noqa: ARG002
        """Whether the job API answers with our token."""
        token = self.layout.token.read_text().strip() if self.layout.token.is_file() else ""
        return http.is_ok(f"{self.url()}/api/jobs/", {"Authorization": f"Bearer {token}"})

    def url(self) -> str:
        """The dashboard."""
        return f"http://{HOST}:{self.number(DASHBOARD_PORT)}"


class MLflowServer(Service):
    """MLflow's tracking server and registry on SQLite."""

    name = "mlflow"
    title = "MLflow"
    ports = (MLFLOW_PORT,)

    def command(self) -> list[str]:
        """One worker: SQLite has one writer."""
        folder = self.layout.home / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        return [
            *(program("mlflow"), "server", "--workers=1", f"--host={HOST}", f"--port={self.number(MLFLOW_PORT)}"),
            f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}",
            f"--artifacts-destination={folder / 'artifacts'}",
        ]

    def environment(self) -> dict[str, str]:
        """Without the job runner of MLflow's evaluation features, which nobody here uses."""
        return super().environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def is_healthy(self, record: Record) -> bool:  # noqa: ARG002
        """Whether the server answers."""
        return http.is_ok(f"{self.url()}/health")

    def url(self) -> str:
        """The experiments' page."""
        return f"http://{HOST}:{self.number(MLFLOW_PORT)}"


class PrefectServer(Service):
    """Prefect's server on SQLite."""

    name = "prefect"
    title = "Prefect"
    ports = (PREFECT_PORT,)

    def command(self) -> list[str]:
        """The server in the foreground."""
        return [program("prefect"), "server", "start", f"--host={HOST}", f"--port={self.number(PREFECT_PORT)}"]

    def environment(self) -> dict[str, str]:
        """With logs streamed to followers (``prefect deployment run --watch``, the demo)."""
        streams = ("PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED", "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED")
        return super().environment() | dict.fromkeys(streams, "true")

    def is_healthy(self, record: Record) -> bool:  # noqa: ARG002
        """Whether the server answers."""
        return http.is_ok(f"{self.url()}/api/health")

    def url(self) -> str:
        """The flow runs' page."""
        return f"http://{HOST}:{self.number(PREFECT_PORT)}"


class PrefectWorker(Service):
    """The worker that runs flows as processes of this machine."""

    name = "worker"
    title = "Worker"

    def command(self) -> list[str]:
        """A process worker; it makes its pool when there is none."""
        return [program("prefect"), "worker", "start", f"--pool={POOL}", "--type=process", f"--name={self.name}"]

    def is_healthy(self, record: Record) -> bool:
        """Whether the server has heard of this very worker, not of one before it."""
        server = f"http://{HOST}:{self.number(PREFECT_PORT)}"
        answer = http.request(f"{server}/api/work_pools/{POOL}/workers/filter", body={})
        if answer is None or answer[0] != 200:
            return False
        return any(
            worker["name"] == self.name
            and worker["status"] == "ONLINE"
            and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= record.created
            for worker in json.loads(answer[1])
        )


SERVICES: tuple[type[Service], ...] = (RayHead, MLflowServer, PrefectServer, PrefectWorker)
