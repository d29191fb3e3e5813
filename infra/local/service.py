"""What every service of the cluster has: a command, an environment, a test of its health."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from infra.local.access import Access
from infra.local.layout import HOST, PROJECT, Port, program
from infra.local.processes import MARKER, Record

OURS = ("RAY_", "PREFECT_", "MLFLOW_", "SMOOTH_CLUSTER_")
SECRETS = ("SMOOTH_DATABASE", "SMOOTH_STORE", "SMOOTH_NOTIFY_URL")
"""Variables that only this package reads, which no service inherits."""


class Service(ABC):
    """One part of the cluster."""

    name: str
    title: str
    ports: ClassVar[tuple[Port, ...]] = ()

    def __init__(self, access: Access) -> None:
        self.access = access
        self.layout = access.layout
        self.options = access.options

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments. No secret: anybody on this machine can read them."""

    @abstractmethod
    def is_healthy(self, record: Record) -> bool:
        """Whether the service that ``record`` describes does its work."""

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Make what it needs before it starts."""

    def finish(self) -> None:  # noqa: B027 - most need nothing
        """What is to be done once it is well."""

    def url(self) -> str | None:
        """Where a person finds it, if it has a page."""
        return None

    def environment(self) -> dict[str, str]:
        """Our settings and the user's environment without theirs, so that a stray variable changes nothing."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(OURS) and key not in SECRETS}
        path = f"{Path(program('python')).parent}{os.pathsep}{inherited.get('PATH', '')}"
        return (
            inherited
            | self.access.environment()
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

    @property
    def address(self) -> str:
        """Of this machine, on which its :attr:`ports` are."""
        return HOST

    def number(self, port: Port) -> int:
        """Where it listens for a port in :attr:`ports`."""
        return self.access.own_number(port)

    def recorded_ports(self) -> dict[str, int]:
        """What its record keeps of its ports: name -> number."""
        behind = [port.behind for port in self.ports if self.access.is_guarded(port)]
        return {name: self.access.ports[name] for name in [*(port.variable for port in self.ports), *behind]}
