"""Bring the local cluster up and down, and say how it is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.local import http, processes
from infra.local.layout import HOST, PORTS, PREFECT_PORT, PROJECT, RAY_PORT, ClusterError, Layout, is_free, program
from infra.local.services import SERVICES, PrefectServer, PrefectWorker, RayHead, Service, addresses

START_SECONDS = 180.0
LOG_LINES = 15
DEPLOYMENT = "smooth-train/full"


@dataclass(frozen=True)
class Health:
    """One service as it is now."""

    name: str
    title: str
    status: str
    """``healthy``, ``not answering`` or ``stopped``."""
    pid: int | None
    url: str | None


class LocalCluster:
    """The services of one :class:`Layout`. Ports of what runs are read from its record, others from the variables."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._records = {service.name: processes.read_record(layout.record(service.name)) for service in SERVICES}
        self.ports = self._resolve_ports()
        self.services = [service(layout, self.ports) for service in SERVICES]

    def _resolve_ports(self) -> dict[str, int]:
        """Port variable -> number: where a living service listens, else where the variable says."""
        ports = {}
        for port in PORTS:
            record = self._records[port.service]
            running = record.ports.get(port.variable) if record is not None and record.process() else None
            ports[port.variable] = port.number if running is None else running
        return ports

    def health(self) -> list[Health]:
        """How each service is."""
        with ThreadPoolExecutor(len(self.services)) as pool:
            return list(pool.map(self._health, self.services))

    def _health(self, service: Service) -> Health:
        record = self._records[service.name]
        if record is None or record.process() is None:
            return Health(service.name, service.title, "stopped", None, None)
        status = "healthy" if service.is_healthy(record) else "not answering"
        return Health(service.name, service.title, status, record.pid, service.url())

    def up(self) -> list[str]:
        """Start what does not run, restart what does not answer, and return the names of what was started.

        Raises:
            ClusterError: a port is taken, or a service does not come up.
        """
        self._check_moved_ports()
        sick = {health.name for health in self.health() if health.status != "healthy"}
        if self._state_text() != (self.layout.state.read_text() if self.layout.state.is_file() else ""):
            sick.add(PrefectWorker.name)  # its environment holds the addresses of before
        worker = self._records[PrefectWorker.name]
        if PrefectServer.name in sick and worker is not None and worker.process() is not None:
            sick.discard(PrefectWorker.name)  # it can't answer without the server, waits for it, and follows its flows
        started = [service for service in self.services if service.name in sick]
        for service in started:
            self._stop(service)
        self._check_free_ports(started)
        self._start_all(started)
        self._register_deployments()
        temporary = self.layout.state.with_suffix(".partial")
        temporary.write_text(self._state_text())
        temporary.replace(self.layout.state)
        return [service.name for service in started]

    def down(self) -> dict[str, int]:
        """Stop every process of the cluster; name -> how many processes there were.

        The worker goes first: it ends its flows, and they end their Ray jobs.
        """
        self.layout.state.unlink(missing_ok=True)
        stopped = {service.name: self._stop(service) for service in self.services if service.name == PrefectWorker.name}
        rest = [service for service in self.services if service.name not in stopped]
        with ThreadPoolExecutor(len(rest)) as pool:
            stopped |= dict(zip([service.name for service in rest], pool.map(self._stop, rest), strict=True))
        self._keep_ray_logs()
        return stopped

    def _check_moved_ports(self) -> None:
        for port in PORTS:
            running = self.ports[port.variable]
            if os.environ.get(port.variable) and port.number != running:
                raise ClusterError(
                    f"{port.variable}={port.number}, but {port.service} runs on {running}: `make cluster-down` first"
                )

    def _check_free_ports(self, services: list[Service]) -> None:
        for service in services:
            for port in service.ports:
                number = service.number(port)
                if not is_free(number):
                    raise ClusterError(
                        f"port {number} of {service.title} is taken{_listener(number)}; "
                        f"free it, or set {port.variable} to another port"
                    )

    def _start_all(self, services: list[Service]) -> None:
        """Start all at once; only the worker waits, for the server that it reports to."""
        waiting = [service for service in services if isinstance(service, PrefectWorker)]
        for service in services:
            if service not in waiting:
                self._start(service)
        if waiting:
            for service in self.services:
                if isinstance(service, PrefectServer):
                    self._await(service)
            for service in waiting:
                self._start(service)
        for service in services:
            self._await(service)

    def _start(self, service: Service) -> None:
        if isinstance(service, RayHead):
            self._prepare_ray()
        self._records[service.name] = processes.start(
            service.command(),
            environment=service.environment(),
            folder=PROJECT,
            log=self.layout.log(service.name),
            record=self.layout.record(service.name),
            ports={port.variable: service.number(port) for port in service.ports},
        )

    def _await(self, service: Service) -> None:
        record = self._records[service.name]
        deadline = time.monotonic() + START_SECONDS
        while record is not None and record.process() is not None and time.monotonic() < deadline:
            if service.is_healthy(record):
                return
            time.sleep(0.3)
        log = self.layout.log(service.name)
        tail = "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise ClusterError(f"{service.title} did not come up; the end of {log}:\n{tail}")

    def _stop(self, service: Service) -> int:
        count = processes.stop(self._records[service.name], self.layout.marker(service.name))
        self.layout.record(service.name).unlink(missing_ok=True)
        self._records[service.name] = None
        return count

    def _prepare_ray(self) -> None:
        """Make the token and an empty folder that only this user can enter."""
        if not self.layout.token.is_file():
            descriptor = os.open(self.layout.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as handle:
                handle.write(secrets.token_hex(32))
        folder = self.layout.ray_folder
        if folder.exists() and folder.stat().st_uid != os.getuid():
            raise ClusterError(f"{folder} belongs to another user; remove it")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)

    def _keep_ray_logs(self) -> None:
        """Move the last session's logs to the others and leave nothing of Ray behind."""
        logs = self.layout.ray_folder / "session_latest" / "logs"
        if logs.is_dir():
            kept = self.layout.log("ray").with_suffix("")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(logs, kept, symlinks=True)
        shutil.rmtree(self.layout.ray_folder, ignore_errors=True)

    def _register_deployments(self) -> None:
        """Register the deployments, unless the server has them as they are now."""
        server = f"http://{HOST}:{self.ports[PREFECT_PORT.variable]}/api"
        file = PROJECT / "infra" / "prefect.yaml"
        presets = (PROJECT / "smooth" / "presets").glob("*.yaml")  # the form lists them
        sources = [file, *sorted((PROJECT / "flows").glob("*.py")), *sorted(presets)]
        told = "".join(os.environ.get(name, "") for name in ("SMOOTH_NOTIFY_URL", "SMOOTH_SILENT_SECONDS")).encode()
        digest = hashlib.sha256(b"\0".join([*(path.read_bytes() for path in sources), told])).hexdigest()
        known = self.layout.deployed.read_text() if self.layout.deployed.is_file() else ""
        if known == digest and http.is_ok(f"{server}/deployments/name/{DEPLOYMENT}"):
            return
        environment = next(service for service in self.services if isinstance(service, PrefectWorker)).environment()
        deploy = [program("prefect"), "--no-prompt", "deploy", "--prefect-file", str(file), "--all"]
        for command in (deploy, [sys.executable, "-m", "flows.automations"]):
            result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
            if result.returncode:
                raise ClusterError(f"the deployments could not be registered:\n{result.stdout}{result.stderr}")
        self.layout.deployed.write_text(digest)

    def _state_text(self) -> str:
        client = addresses(self.layout, self.ports)
        state = {
            "ray_address": f"{HOST}:{self.ports[RAY_PORT.variable]}",
            "ray_dashboard": client["RAY_API_SERVER_ADDRESS"],
            "ray_token_path": client["RAY_AUTH_TOKEN_PATH"],
            "mlflow_uri": client["MLFLOW_TRACKING_URI"],
            "prefect_api": client["PREFECT_API_URL"],
        }
        return json.dumps(state, indent=2) + "\n"


@contextmanager
def changing(layout: Layout) -> Iterator[LocalCluster]:
    """The cluster, while no other command may change it."""
    layout.lock.parent.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield LocalCluster(layout)


def _listener(port: int) -> str:
    """Who listens on ``port``, as far as this user may know."""
    for process in psutil.process_iter(["pid", "name"]):
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        if any(item.status == psutil.CONN_LISTEN and item.laddr.port == port for item in connections):
            return f" by process {process.pid} ({' '.join(process.cmdline()[:3]) or Path(process.exe()).name})"
    return ""
