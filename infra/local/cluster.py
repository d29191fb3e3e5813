"""Bring the local cluster up and down, and say how it is."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.local import deployments, processes
from infra.local.access import Access
from infra.local.deployments import DEPLOYMENT
from infra.local.layout import GUARDED, PORTS, PROJECT, ClusterError, Layout, free_ports, write_private
from infra.local.nodes import RayNode
from infra.local.options import Options
from infra.local.services import SERVICES, Guard, PrefectServer, PrefectWorker, RayHead, Service
from smooth.listening import is_free

__all__ = ["DEPLOYMENT", "Health", "LocalCluster", "changing"]

START_SECONDS = 600.0  # a bound against waiting for ever: what ends by itself is told of at once
LOG_LINES = 15


@dataclass(frozen=True)
class Health:
    """One service as it is now."""

    name: str
    title: str
    status: str
    """``healthy``, ``not answering``, ``not logging`` (it works, but what it says is lost) or ``stopped``."""
    pid: int | None
    url: str | None


class LocalCluster:
    """The services of one :class:`Layout`. Ports of what runs are read from its record, others from the variables."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._known_nodes = _known_nodes(layout)
        nodes = [f"{RayNode.PREFIX}{index}" for index in self._known_nodes]
        names = [*(service.name for service in SERVICES), Guard.name, *nodes]
        self._records = {name: processes.read_record(layout.record(name)) for name in names}
        self._is_running = any(record is not None and record.process() for record in self._records.values())
        options = Options.read(layout.options)  # of what runs, or ran when the machine went down
        self.ports = self._resolve_ports()
        self._set_access(Access.load(layout, options, self.ports))

    def _set_access(self, access: Access) -> None:
        self.access, self.options = access, access.options
        head, *rest = (service(access) for service in SERVICES)
        nodes = (RayNode(access, index + 1) for index in range(self.options.workers))
        self.services = [head, *nodes, *rest, *([Guard(access)] if self.options.is_open else [])]

    def _resolve_ports(self) -> dict[str, int]:
        """Port variable -> number: where what lives listens or leads to, else where the variable says.

        The guard knows the ports of the services, and they the guard's: either finds the other again.
        """
        running: dict[str, int] = {}
        for record in self._records.values():
            running |= record.ports if record is not None and record.process() else {}
        outer = {port.variable: running.get(port.variable) or port.number for port in PORTS}
        free = free_ports(len(GUARDED))
        return outer | {port.behind: running.get(port.behind) or free.pop() for port in GUARDED}

    def health(self) -> list[Health]:
        """How each service is."""
        with ThreadPoolExecutor(len(self.services)) as pool:
            return list(pool.map(self._health, self.services))

    def _health(self, service: Service) -> Health:
        record = self._records.get(service.name)
        if record is None or record.process() is None:
            return Health(service.name, service.title, "stopped", None, None)
        status = "healthy" if service.is_healthy(record) else "not answering"
        if record.keeper.process() is None:
            status = "not logging"
        return Health(service.name, service.title, status, record.pid, service.url())

    def up(self) -> list[str]:
        """Start what does not run, restart what does not answer, and return the names of what was started or removed.

        Raises:
            ClusterError: a port is taken, or a service does not come up.
        """
        self._check_moved_ports()
        options = Options.asked(self.options, running=self._is_running)
        self._set_access(Access.make(self.layout, options, self.ports))
        possible = [*(RayNode(self.access, index) for index in self._known_nodes), Guard(self.access)]
        removed = [service.name for service in possible if service.name not in self.names and self._stop(service)]
        sick = {health.name for health in self.health() if health.status != "healthy"}
        worker = self._records[PrefectWorker.name]
        if sick & {PrefectServer.name, Guard.name} and worker is not None and worker.process() is not None:
            sick.discard(PrefectWorker.name)  # it can't answer without the server, waits for it, and follows its flows
        if self._state_text() != (self.layout.state.read_text() if self.layout.state.is_file() else ""):
            sick.add(PrefectWorker.name)  # its environment holds the addresses of before
        if RayHead.name in sick:
            sick |= {service.name for service in self.services if isinstance(service, RayNode)}
        starting = [service for service in self.services if service.name in sick]
        with ThreadPoolExecutor(len(self.services)) as pool:
            list(pool.map(self._stop, starting))
        self._check_free_ports(starting)
        self.options.save(self.layout.options)
        self._start_all(starting)
        for service in self.services:  # of those that ran already, too: the `up` that started them may have been killed
            service.finish()
        deployments.register(self.access, self._worker().environment())
        write_private(self.layout.state, self._state_text())
        return [*removed, *(service.name for service in starting)]

    @property
    def names(self) -> set[str]:
        """Of the services that the cluster shall have."""
        return {service.name for service in self.services}

    def _worker(self) -> Service:
        return next(service for service in self.services if isinstance(service, PrefectWorker))

    def down(self) -> dict[str, int]:
        """Stop every process of the cluster; name -> how many processes there were.

        The worker goes first: it ends its flows, while the servers that they report to are there.
        """
        self.layout.state.unlink(missing_ok=True)
        possible = [*(RayNode(self.access, index) for index in self._known_nodes), Guard(self.access)]
        services = [service for service in self.services if not isinstance(service, RayNode | Guard)] + possible
        stopped = {service.name: self._stop(service) for service in services if service.name == PrefectWorker.name}
        rest = [service for service in services if service.name not in stopped]
        with ThreadPoolExecutor(len(rest)) as pool:
            stopped |= dict(zip([service.name for service in rest], pool.map(self._stop, rest), strict=True))
        self._keep_ray_logs()
        self.layout.prefect_profiles.unlink(missing_ok=True)
        self.layout.options.unlink(missing_ok=True)
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
                if not is_free(number, service.address):
                    other = f"set {port.variable} to another port"
                    if number != self.ports[port.variable]:
                        other = "`make cluster-down` and take another"
                    raise ClusterError(
                        f"port {number} of {service.title} is taken{_listener(number)}; free it, or {other}"
                    )

    def _start_all(self, services: list[Service]) -> None:
        """Start all at once; Ray's nodes wait for its head, and the worker for the server and the way to it."""
        for service in services:
            if not isinstance(service, PrefectWorker | RayNode):
                self._start(service)
        for kind, before in ((RayNode, RayHead), (PrefectWorker, PrefectServer | Guard)):
            held = [service for service in services if isinstance(service, kind)]
            for first in self.services if held else ():
                if isinstance(first, before):
                    self._await(first)
            for service in held:
                self._start(service)
        for service in services:
            self._await(service)

    def _start(self, service: Service) -> None:
        service.prepare()
        self._records[service.name] = processes.start(
            service.command(),
            environment=service.environment(),
            folder=PROJECT,
            log=self.layout.log(service.name),
            record=self.layout.record(service.name),
            ports=service.recorded_ports(),
        )

    def _await(self, service: Service) -> None:
        record = self._records[service.name]
        deadline = time.monotonic() + START_SECONDS
        while record is not None and record.process() is not None and time.monotonic() < deadline:
            if service.is_healthy(record):
                return
            time.sleep(0.3)
        log = self.layout.log(service.name)
        text = log.read_text(errors="replace") if log.exists() else ""
        tail = "\n".join(f"  {line}" for line in text.splitlines()[-LOG_LINES:])
        raise ClusterError(f"{service.title} did not come up; the end of {log}:\n{tail}")

    def _stop(self, service: Service) -> int:
        count = processes.stop(self._records.get(service.name), self.layout.marker(service.name))
        self.layout.record(service.name).unlink(missing_ok=True)
        self._records[service.name] = None
        return count

    def _keep_ray_logs(self) -> None:
        """Move the last session's logs to the others and leave nothing of Ray behind."""
        logs = self.layout.ray_folder / "session_latest" / "logs"
        if logs.is_dir():
            kept = self.layout.log("ray").with_suffix("")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(logs, kept, symlinks=True)
        shutil.rmtree(self.layout.ray_folder, ignore_errors=True)

    def _state_text(self) -> str:
        return json.dumps(self.access.state(), indent=2) + "\n"


def _known_nodes(layout: Layout) -> list[int]:
    """Indices of Ray's nodes of which a record or a process is there, whoever started them."""
    prefix = layout.marker(RayNode.PREFIX)
    names = [path.stem for path in layout.record(RayNode.PREFIX).parent.glob(f"{RayNode.PREFIX}*.json")]
    names += [RayNode.PREFIX + marker.removeprefix(prefix) for marker in processes.marked(prefix)]
    return sorted({int(name.removeprefix(RayNode.PREFIX)) for name in names})


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
