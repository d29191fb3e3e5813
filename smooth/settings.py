"""Where the services are: environment variables first, then what ``make cluster-up`` wrote down.

On a real cluster the variables are set by its deployment; on one machine nothing has to be set.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict


def home() -> Path:
    """Folder of local state: ``$SMOOTH_HOME``, else ``.smooth`` under the working directory; absolute."""
    return Path(os.environ.get("SMOOTH_HOME") or ".smooth").absolute()


def state_file() -> Path:
    """Addresses of the running local cluster; exists only while it is up."""
    return home() / "cluster" / "state.json"


def credentials() -> dict[str, str]:
    """Name -> secret of the running local cluster, if it demands any (``make cluster-up BIND=...``)."""
    path = state().get("credentials")
    return dict(line.split("=", 1) for line in Path(path).read_text().splitlines() if line) if path else {}


def state() -> dict[str, str | None]:
    """What the local cluster wrote down when it came up; empty while it is down."""
    path = state_file()
    return dict(json.loads(path.read_text())) if path.is_file() else {}


class Services(BaseModel):
    """Addresses of the services; None where nothing is known."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ray_address: str | None = None
    """GCS ``host:port``, for ``ray.init``."""
    ray_dashboard: str | None = None
    """``http://host:port`` of the job API."""
    ray_token_path: str | None = None
    """File that holds the token every Ray client sends."""
    mlflow_uri: str | None = None

    @classmethod
    def load(cls) -> Self:
        """Read the environment, and the local cluster's state file for what it leaves open.

        That cluster's token is for it alone: a ``RAY_API_SERVER_ADDRESS`` of another is not sent it.
        """
        variables = {
            "ray_address": "RAY_ADDRESS",
            "ray_dashboard": "RAY_API_SERVER_ADDRESS",
            "ray_token_path": "RAY_AUTH_TOKEN_PATH",
            "mlflow_uri": "MLFLOW_TRACKING_URI",
        }
        given = {field: os.environ[name] for field, name in variables.items() if os.environ.get(name)}
        known = state()
        if given.get("ray_dashboard", known.get("ray_dashboard")) != known.get("ray_dashboard"):
            known.pop("ray_token_path", None)
        return cls.model_validate(known | given)

    def log_in(self) -> None:
        """Have MLflow's client send the local cluster's password, to that cluster and to no other server.

        The client reads it from the environment alone; what is set there already is left as it is.
        """
        if self.mlflow_uri != state().get("mlflow_uri") or os.environ.get("MLFLOW_TRACKING_USERNAME"):
            return
        if password := credentials().get("SMOOTH_MLFLOW_PASSWORD"):
            os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
