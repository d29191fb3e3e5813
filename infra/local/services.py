"""MLflow, Prefect and its worker: how each is started, on which ports, and how it tells that it is well."""

from __future__ import annotations

import json
import os
import socket
from configparser import ConfigParser
from datetime import datetime

from infra.local import database, http
from infra.local.layout import MLFLOW_PORT, POOL, PREFECT_PORT, PROJECT, Port, program
from infra.local.nodes import RayHead
from infra.local.options import ANYWHERE, addresses_of_this_machine
from infra.local.processes import Record
from infra.local.service import OURS, Service

__all__ = ["OURS", "SERVICES", "MLflowServer", "PrefectServer", "PrefectWorker", "RayHead", "Service"]

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
        address = (f"--host={self.options.bind}", f"--port={self.number(MLFLOW_PORT)}")
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
        """What a browser may call this server: its addresses, its host's name and ``$SMOOTH_MLFLOW_HOSTS``."""
        bound = addresses_of_this_machine() if self.options.bind == ANYWHERE else [self.options.bind]
        names = sorted({*bound, "127.0.0.1", "localhost", socket.gethostname()})
        more = [host for host in os.environ.get("SMOOTH_MLFLOW_HOSTS", "").split(",") if host]
        return [*(f"{name}:{self.number(MLFLOW_PORT)}" for name in names), *more]

    def listens_on(self, port: Port) -> str:  # noqa: ARG002
        """As asked for."""
        return self.options.bind

    def is_healthy(self, record: Record) -> bool:  # noqa: ARG002
        """Whether the server answers, to our login if it demands one."""
        return http.is_ok(f"{self.url()}/health") and http.is_ok(f"{self.url()}/version", self.access.mlflow_headers())

    def url(self) -> str:
        """The experiments' page."""
        return self.access.url(MLFLOW_PORT.variable)


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
        address = (f"--host={self.options.bind}", f"--port={self.number(PREFECT_PORT)}")
        return [program("prefect"), "server", "start", *address]

    def environment(self) -> dict[str, str]:
        """With logs streamed to followers (``prefect deployment run --watch``, the demo), for its own pages alone."""
        streams = ("PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED", "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED")
        pages = [f"http://{host}:{self.number(PREFECT_PORT)}" for host in ("127.0.0.1", "localhost")]
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

    def listens_on(self, port: Port) -> str:  # noqa: ARG002
        """As asked for."""
        return self.options.bind

    def is_healthy(self, record: Record) -> bool:  # noqa: ARG002
        """Whether the server answers, to our login if it demands one."""
        return http.is_ok(f"{self.url()}/api/health") and http.is_ok(
            f"{self.url()}/api/admin/version", self.access.prefect_headers()
        )

    def url(self) -> str:
        """The flow runs' page."""
        return self.access.url(PREFECT_PORT.variable)


class PrefectWorker(Service):
    """The worker that runs flows as processes of this machine."""

    name = "worker"
    title = "Worker"

    def command(self) -> list[str]:
        """A process worker; it makes its pool when there is none."""
        return [program("prefect"), "worker", "start", f"--pool={POOL}", "--type=process", f"--name={self.name}"]

    def is_healthy(self, record: Record) -> bool:
        """Whether the server has heard of this very worker, not of one before it."""
        workers = f"{self.access.url(PREFECT_PORT.variable)}/api/work_pools/{POOL}/workers/filter"
        answer = http.request(workers, body={}, headers=self.access.prefect_headers())
        if answer is None or answer[0] != 200:
            return False
        return any(
            worker["name"] == self.name
            and worker["status"] == "ONLINE"
            and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= record.created
            for worker in json.loads(answer[1])
        )


SERVICES: tuple[type[Service], ...] = (RayHead, MLflowServer, PrefectServer, PrefectWorker)
"""Those that every cluster has; :class:`~infra.local.nodes.RayNode` comes beside them."""
