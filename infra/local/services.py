"""MLflow, Prefect, its worker and the guard: how each is started, on which ports, and how it tells that it is well."""

from __future__ import annotations

import json
import os
import socket
import sys
from configparser import ConfigParser
from datetime import datetime

from infra.local import database, http
from infra.local.access import MLFLOW_LOGIN, PREFECT_LOGIN
from infra.local.layout import DASHBOARD_PORT, GUARDED, HOST, MLFLOW_PORT, POOL, PREFECT_PORT, PROJECT, Port, program
from infra.local.nodes import RayHead
from infra.local.options import ANYWHERE, addresses_of_this_machine
from infra.local.processes import Record
from infra.local.service import OURS, Service

__all__ = ["OURS", "SERVICES", "Guard", "MLflowServer", "PrefectServer", "PrefectWorker", "RayHead", "Service"]

LOGINS = PROJECT / "infra" / "mlflow-auth.ini"


class MLflowServer(Service):
    """MLflow's tracking server and registry."""

    name = "mlflow"
    title = "MLflow"
    ports = (MLFLOW_PORT,)

    def prepare(self) -> None:
        """Make its folder and its database."""
        folder = self.layout.home / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        if self.options.database:
            database.prepare(self.options.database, self.name)
        if self.options.is_open:
            users = self._database() if self.options.database else f"sqlite:///{folder / 'logins.db'}"
            logins = ConfigParser()
            logins.read(LOGINS)
            logins["mlflow"]["database_uri"] = users.replace("%", "%%")
            with (folder / "logins.ini").open("w") as file:
                logins.write(file)

    def finish(self) -> None:
        """Keep artifacts in the store: its database is there now."""
        if self.options.database:
            database.confine(self.options.database, self.name)
        else:
            database.confine_sqlite(self.layout.home / "mlflow" / "mlflow.db")

    def command(self) -> list[str]:
        """One worker: SQLite has one writer."""
        login = ["--app-name=basic-auth"] if self.options.is_open else []
        address = (f"--host={HOST}", f"--port={self.number(MLFLOW_PORT)}")
        return [program("mlflow"), "server", "--workers=1", *address, *login]

    def _database(self) -> str:
        if self.options.database:
            return database.url(self.options.database, self.name, "postgresql+psycopg2")
        return f"sqlite:///{self.layout.home / 'mlflow' / 'mlflow.db'}"

    def environment(self) -> dict[str, str]:
        """Without the job runner of MLflow's evaluation features, which nobody here uses."""
        folder = self.layout.home / "mlflow"
        found = super().environment() | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": "^(mlflow-artifacts|models|runs):/[^/]",
            "MLFLOW_BACKEND_STORE_URI": self._database(),
            "MLFLOW_ARTIFACTS_DESTINATION": self.options.store or str(folder / "artifacts"),
        }
        if self.options.database:
            found |= database.environment(self.options.database)
        if self.options.store and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
            found["MLFLOW_S3_ENDPOINT_URL"] = endpoint
        if self.options.is_open:
            hosts = self._hosts()
            found |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(folder / "logins.ini"),
                "MLFLOW_AUTH_ADMIN_PASSWORD": self.access.secrets["SMOOTH_MLFLOW_PASSWORD"],
                "MLFLOW_FLASK_SERVER_SECRET_KEY": self.access.secrets["SMOOTH_MLFLOW_SESSION_KEY"],
                "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
                "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}" for host in hosts),
            }
        return found

    def _hosts(self) -> list[str]:
        """What this server may be called: by its addresses, its host's name, ``$SMOOTH_MLFLOW_HOSTS``, and by us."""
        bound = addresses_of_this_machine() if self.options.bind == ANYWHERE else [self.options.bind]
        names = sorted({*bound, HOST, "localhost", socket.gethostname()})
        more = [host for host in os.environ.get("SMOOTH_MLFLOW_HOSTS", "").split(",") if host]
        outside = self.access.ports[MLFLOW_PORT.variable]
        return [*(f"{name}:{outside}" for name in names), *more, f"{HOST}:{self.number(MLFLOW_PORT)}"]

    def is_healthy(self, record: Record) -> bool:  # noqa: ARG002
        """Whether the server answers, to our login if it demands one."""
        return http.is_ok(f"{self.access.own_url(MLFLOW_PORT)}/version", self.access.mlflow_headers())

    def url(self) -> str:
        """The experiments' page."""
        return self.access.url(MLFLOW_PORT)


class PrefectServer(Service):
    """Prefect's server."""

    name = "prefect"
    title = "Prefect"
    ports = (PREFECT_PORT,)

    def prepare(self) -> None:
        """Make its database."""
        if self.options.database:
            database.prepare(self.options.database, self.name)

    def command(self) -> list[str]:
        """The server in the foreground."""
        address = (f"--host={HOST}", f"--port={self.number(PREFECT_PORT)}")
        return [program("prefect"), "server", "start", *address]

    def environment(self) -> dict[str, str]:
        """With logs streamed to followers (``prefect deployment run --watch``, the demo), for its own pages alone."""
        streams = ("PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED", "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED")
        pages = [f"http://{host}:{self.access.ports[PREFECT_PORT.variable]}" for host in ("127.0.0.1", "localhost")]
        found = super().environment() | dict.fromkeys(streams, "true")
        found["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(pages)
        # In memory, its default, a restart forgets who holds a place under a concurrency limit, and never frees it.
        found["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] = "prefect.server.concurrency.lease_storage.filesystem"
        if self.options.database:
            url = database.url(self.options.database, self.name, "postgresql+asyncpg")
            found |= {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url, **database.environment(self.options.database)}
        if self.options.is_open:
            found["PREFECT_SERVER_API_AUTH_STRING"] = self.access.prefect_login
            found["PREFECT_SERVER_UI_API_URL"] = "/api"  # by whatever address the browser came
        return found

    def is_healthy(self, record: Record) -> bool:  # noqa: ARG002
        """Whether the server answers, to our login if it demands one."""
        own = f"{self.access.own_url(PREFECT_PORT)}/api"
        return http.is_ok(f"{own}/health") and http.is_ok(f"{own}/admin/version", self.access.prefect_headers())

    def url(self) -> str:
        """The flow runs' page."""
        return self.access.url(PREFECT_PORT)


class PrefectWorker(Service):
    """The worker that runs flows as processes of this machine."""

    name = "worker"
    title = "Worker"

    def command(self) -> list[str]:
        """A process worker; it makes its pool when there is none."""
        return [program("prefect"), "worker", "start", f"--pool={POOL}", "--type=process", f"--name={self.name}"]

    def is_healthy(self, record: Record) -> bool:
        """Whether the server has heard of this very worker, not of one before it."""
        workers = f"{self.access.own_url(PREFECT_PORT)}/api/work_pools/{POOL}/workers/filter"
        answer = http.request(workers, body={}, headers=self.access.prefect_headers())
        if answer is None or answer[0] != 200:
            return False
        return any(
            worker["name"] == self.name
            and worker["status"] == "ONLINE"
            and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= record.created
            for worker in json.loads(answer[1])
        )


class Guard(Service):
    """Who listens for MLflow, Prefect and Ray's dashboard in a cluster that is open to others."""

    name = "guard"
    title = "Guard"
    ports = GUARDED

    @property
    def address(self) -> str:
        """As asked for."""
        return self.options.bind

    def number(self, port: Port) -> int:
        """The port by which the service is called."""
        return self.access.ports[port.variable]

    def command(self) -> list[str]:
        """With the name of the file that holds the credentials."""
        pairs = [
            f"--{name}={self.number(port)}:{self.access.own_number(port)}"
            for name, port in (("ray", DASHBOARD_PORT), ("mlflow", MLFLOW_PORT), ("prefect", PREFECT_PORT))
        ]
        given = (f"--listen={self.address}", f"--credentials={self.layout.credentials}")
        return [sys.executable, "-m", "infra.local.guard", *given, *pairs]

    def environment(self) -> dict[str, str]:
        """Without logins: it reads the file."""
        found = super().environment()
        return {name: value for name, value in found.items() if name not in (*PREFECT_LOGIN, *MLFLOW_LOGIN)}

    def is_healthy(self, record: Record) -> bool:
        """Whether it leads where the services are, and knows the credentials as they are now from none."""
        sent = (self.access.ray_headers(), self.access.mlflow_headers(), self.access.prefect_headers())
        asked = [(f"{self.access.url(port)}/health", headers) for port, headers in zip(GUARDED, sent, strict=True)]
        return record.ports == self.recorded_ports() and all(
            _status(place, {}) == 401 and _status(place, headers) not in (None, 401) for place, headers in asked
        )


def _status(url: str, headers: dict[str, str]) -> int | None:
    answer = http.request(url, headers=headers)
    return answer[0] if answer is not None else None


SERVICES: tuple[type[Service], ...] = (RayHead, MLflowServer, PrefectServer, PrefectWorker)
"""Those that every cluster has; :class:`~infra.local.nodes.RayNode` and the guard of an open one come beside them."""
