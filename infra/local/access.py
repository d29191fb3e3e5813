"""How clients on this machine reach the cluster, and the credentials that they send."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from infra import credentials
from infra.local.layout import (
    DASHBOARD_PORT,
    GUARDED,
    HOST,
    MLFLOW_PORT,
    PREFECT_PORT,
    RAY_PORT,
    ClusterError,
    Layout,
    Port,
    write_private,
)
from infra.local.options import Options

ADMIN = "admin"
"""MLflow's user."""

MLFLOW_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
PREFECT_LOGIN = ("PREFECT_API_AUTH_STRING", "PREFECT_CLIENT_CUSTOM_HEADERS")
"""Variables of the clients that hold their credentials."""

# Of this machine itself. By any name of loopback Ray's clients would take its outer address, where Ray does not listen.
RAY_HOST = "0.0.0.0"  # noqa: S104 - an address to connect to, not to listen on


@dataclass(frozen=True)
class Access:
    """Addresses and credentials of one cluster."""

    layout: Layout
    options: Options
    ports: Mapping[str, int]
    """Environment variable of a port -> the number in use; also the names of those behind the guard's."""
    secrets: Mapping[str, str] = field(repr=False)
    """Of :mod:`infra.credentials`; empty as long as they were never made."""

    @classmethod
    def load(cls, layout: Layout, options: Options, ports: Mapping[str, int]) -> Access:
        """The access as the files have it."""
        return cls(layout, options, ports, credentials.read(layout.credentials) if layout.credentials.is_file() else {})

    @classmethod
    def make(cls, layout: Layout, options: Options, ports: Mapping[str, int]) -> Access:
        """The same, with every credential made that is missing.

        Raises:
            ClusterError: others can read the file.
        """
        try:
            credentials.write_missing(layout.credentials)
        except ValueError as error:
            raise ClusterError(str(error)) from error
        made = cls.load(layout, options, ports)
        if options.is_open:
            # The checkout's pyproject.toml points Prefect's commands here.
            settings = "\n".join(f"{name} = '{value}'" for name, value in made.prefect_settings().items())
            write_private(layout.prefect_profiles, f'active = "cluster"\n\n[profiles.cluster]\n{settings}\n')
        else:
            layout.prefect_profiles.unlink(missing_ok=True)
        return made

    @property
    def prefect_login(self) -> str:
        """``user:password``."""
        return self.secrets["SMOOTH_PREFECT_AUTH"]

    def url(self, port: Port) -> str:
        """``http://host:port`` by which people and clients call a service."""
        return f"http://{self.options.host}:{self.ports[port.variable]}"

    def is_guarded(self, port: Port) -> bool:
        """Whether it is the guard that listens there, for the service."""
        return self.options.is_open and port in GUARDED

    def own_number(self, port: Port) -> int:
        """Where the service itself listens."""
        return self.ports[port.behind if self.is_guarded(port) else port.variable]

    def own_url(self, port: Port) -> str:
        """``http://127.0.0.1:port`` of the service itself, whatever is before it."""
        return f"http://{HOST}:{self.own_number(port)}"

    def prefect_settings(self) -> dict[str, str]:
        """What Prefect's clients log in with. By themselves most of their websockets send it once they are open."""
        return dict(zip(PREFECT_LOGIN, (self.prefect_login, json.dumps(_basic(self.prefect_login))), strict=True))

    def mlflow_headers(self) -> dict[str, str]:
        """What a request to MLflow carries."""
        return _basic(f"{ADMIN}:{self.secrets['SMOOTH_MLFLOW_PASSWORD']}") if self._is_secured() else {}

    def prefect_headers(self) -> dict[str, str]:
        """What a request to Prefect carries."""
        return _basic(self.prefect_login) if self._is_secured() else {}

    def ray_headers(self) -> dict[str, str]:
        """What a request to Ray carries."""
        token = self.layout.token.read_text().strip() if self.layout.token.is_file() else ""
        return {"Authorization": f"Bearer {token}"}

    def _is_secured(self) -> bool:
        return self.options.is_open and bool(self.secrets)

    def environment(self) -> dict[str, str]:
        """The variables that lead a client to this cluster."""
        found = {
            "RAY_API_SERVER_ADDRESS": self.url(DASHBOARD_PORT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.layout.token),
            "MLFLOW_TRACKING_URI": self.url(MLFLOW_PORT),
            "PREFECT_API_URL": f"{self.url(PREFECT_PORT)}/api",
        }
        if self._is_secured():
            found |= {
                **dict(zip(MLFLOW_LOGIN, (ADMIN, self.secrets["SMOOTH_MLFLOW_PASSWORD"]), strict=True)),
                **self.prefect_settings(),
            }
        return found

    def state(self) -> dict[str, str | None]:
        """What :mod:`smooth.settings` reads. No secret, only where secrets are."""
        return {
            "ray_address": f"{RAY_HOST}:{self.ports[RAY_PORT.variable]}",
            "ray_dashboard": self.url(DASHBOARD_PORT),
            "ray_token_path": str(self.layout.token),
            "mlflow_uri": self.url(MLFLOW_PORT),
            "prefect_api": f"{self.url(PREFECT_PORT)}/api",
            "credentials": str(self.layout.credentials) if self.options.is_open else None,
        }

    def hints(self) -> dict[str, str]:
        """Variables that Prefect's own commands need in this checkout, since they would look elsewhere."""
        needed = {}
        if self.url(PREFECT_PORT) != f"http://{HOST}:{PREFECT_PORT.default}":
            needed["PREFECT_API_URL"] = f"{self.url(PREFECT_PORT)}/api"
        if self.options.is_open and self.layout != Layout.default():
            needed["PREFECT_PROFILES_PATH"] = str(self.layout.prefect_profiles)
        return needed


def _basic(login: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
