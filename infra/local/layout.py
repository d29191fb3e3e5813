"""Where the local cluster keeps its files, and on which ports it listens."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from smooth import settings
from smooth.listening import CLUSTER_PORTS, is_free

HOST = "127.0.0.1"
PROJECT = Path(__file__).resolve().parents[2]
POOL = "local-pool"


class ClusterError(ValueError):
    """The local cluster can't be started as asked; the message says which knob to turn."""


@dataclass(frozen=True)
class Port:
    """A port that a user may move with an environment variable."""

    service: str
    variable: str

    @property
    def default(self) -> int:
        """The port where the variable is not set."""
        return CLUSTER_PORTS[self.variable]

    @property
    def number(self) -> int:
        """The port asked for.

        Raises:
            ClusterError: the variable is not a port number.
        """
        text = os.environ.get(self.variable) or str(self.default)
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise ClusterError(f"{self.variable}={text!r} is not a port number (1 to 65535)")
        return int(text)

    @property
    def behind(self) -> str:
        """Name of the port behind the guard's, which is any free one."""
        return f"behind {self.variable}"


RAY_PORT = Port("ray", "SMOOTH_RAY_PORT")
DASHBOARD_PORT = Port("ray", "SMOOTH_RAY_DASHBOARD_PORT")
MLFLOW_PORT = Port("mlflow", "SMOOTH_MLFLOW_PORT")
PREFECT_PORT = Port("prefect", "SMOOTH_PREFECT_PORT")
PORTS = (RAY_PORT, DASHBOARD_PORT, MLFLOW_PORT, PREFECT_PORT)
GUARDED = (DASHBOARD_PORT, MLFLOW_PORT, PREFECT_PORT)
"""Those that the guard of an open cluster has (:mod:`infra.local.guard`); the services are on loopback behind it."""


@dataclass(frozen=True)
class Layout:
    """Files of one local cluster, all under ``home`` (``.smooth`` or ``$SMOOTH_HOME``)."""

    home: Path

    @classmethod
    def load(cls) -> Layout:
        """The layout of this environment."""
        return cls(settings.home())

    @classmethod
    def default(cls) -> Layout:
        """The layout that the checkout's pyproject.toml tells Prefect's commands of."""
        return cls(PROJECT / ".smooth")

    @property
    def state(self) -> Path:
        """Addresses for clients (:mod:`smooth.settings`), there while the cluster is up."""
        return self.home / "cluster" / "state.json"

    @property
    def token(self) -> Path:
        """The token that every client of Ray sends."""
        return self.home / "cluster" / "ray.token"

    @property
    def options(self) -> Path:
        """What the cluster was started with (:mod:`infra.local.options`), for this user's eyes alone."""
        return self.home / "cluster" / "options.json"

    @property
    def credentials(self) -> Path:
        """Passwords and tokens (:mod:`infra.credentials`), for this user's eyes alone."""
        return self.home / "cluster" / "credentials.env"

    @property
    def prefect_profiles(self) -> Path:
        """Where Prefect's own commands find the auth string; there while the cluster demands one."""
        return self.home / "cluster" / "prefect-profiles.toml"

    @property
    def deployed(self) -> Path:
        """Digest of the deployments that the Prefect server has."""
        return self.home / "cluster" / "deployed.json"

    @property
    def lock(self) -> Path:
        """Held while a command changes the cluster."""
        return self.home / "cluster" / "lock"

    def record(self, service: str) -> Path:
        """What is known of a started process."""
        return self.home / "cluster" / "processes" / f"{service}.json"

    def log(self, service: str) -> Path:
        """Output of a service."""
        return self.home / "cluster" / "logs" / f"{service}.log"

    @property
    def ray_folder(self) -> Path:
        """Ray's sockets and session logs. Not under ``home``: a socket's path has at most 107 bytes."""
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:8]
        return Path("/tmp") / f"smooth-ray-{os.getuid()}-{digest}"  # noqa: S108 - made with mode 0700, owner checked

    def marker(self, service: str) -> str:
        """Value of an environment variable that every process of the service inherits."""
        return f"{self.home}#{service}"


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read; whoever reads it sees the old text or the new one."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
    temporary.replace(path)


def program(name: str) -> str:
    """Full path of a console script of this environment."""
    return str(Path(sys.executable).with_name(name))


def free_ports(count: int) -> list[int]:
    """Free ports that the system gives to nobody who asks for any, so that they stay free until they are used.

    Linux gives those from 32768 on, and Ray takes its workers' from 10002 to 19999.
    """
    drawn = random.SystemRandom().sample(range(20_000, 32_768), 1000)  # whatever seed others set in this process
    return list(itertools.islice((port for port in drawn if is_free(port)), count))
