"""What a user may choose of the local cluster, by one environment variable each; it holds until the cluster is down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.local.layout import HOST, ClusterError, write_private

ANYWHERE = "0.0.0.0"  # noqa: S104 - what a user may ask for; nothing then answers without a credential
MAX_WORKERS = 64
VARIABLES = {"bind": "SMOOTH_BIND", "database": "SMOOTH_DATABASE", "store": "SMOOTH_STORE", "workers": "SMOOTH_WORKERS"}
"""Option -> its variable."""


class Options(BaseModel):
    """How the cluster is to run."""

    model_config = ConfigDict(frozen=True)

    bind: str = HOST
    """Address that MLflow, Prefect and Ray's dashboard are reached on; not loopback: by the guard."""
    database: str | None = Field(default=None, repr=False)
    """``postgresql://user:password@host:port/name`` in place of SQLite; a secret."""
    store: str | None = None
    """``s3://bucket/path`` for MLflow's artifacts in place of a folder."""
    workers: int = 0
    """Ray nodes beside the head."""

    @property
    def is_open(self) -> bool:
        """Whether others than this machine reach the cluster, so that everything demands a credential."""
        return self.bind != HOST

    @property
    def host(self) -> str:
        """Where this machine's own clients reach what listens on ``bind``."""
        return HOST if self.bind == ANYWHERE else self.bind

    @classmethod
    def asked(cls, known: Self, *, running: bool) -> Self:
        """The options asked for by variables; where they say nothing, those that were known.

        Args:
            known: what the cluster was started with, or the defaults after a `make cluster-down`.
            running: whether it still runs, so that it can't become another one.

        Raises:
            ClusterError: a variable makes no sense, or asks for what a running cluster can't become.
        """
        given = {option: value for option, name in VARIABLES.items() if (value := os.environ.get(name))}
        asked = known.model_copy(update=cls.model_validate(_checked(given)).model_dump(include=set(given)))
        for option in ("bind", "database", "store") if running else ():
            if getattr(asked, option) != getattr(known, option):
                raise ClusterError(
                    f"{VARIABLES[option]} is not what the running cluster was started with: `make cluster-down` first"
                )
        return asked

    @classmethod
    def read(cls, path: Path) -> Self:
        """What :meth:`save` wrote, or the defaults."""
        try:
            return cls.model_validate_json(path.read_text())
        except (FileNotFoundError, ValidationError):
            return cls()

    def save(self, path: Path) -> None:
        """Keep them while the cluster runs: another shell does not have the variables."""
        write_private(path, self.model_dump_json())


def addresses_of_this_machine() -> list[str]:
    """Its IPv4 addresses, loopback included."""
    found = psutil.net_if_addrs().values()
    return sorted({item.address for items in found for item in items if item.family.name == "AF_INET"})


def _checked(asked: dict[str, str]) -> dict[str, str]:
    """``asked``, if each makes sense. Messages tell no secret: neither URL may be repeated."""
    own = (ANYWHERE, *addresses_of_this_machine())
    if (bind := asked.get("bind", HOST)) not in own:
        raise ClusterError(f"SMOOTH_BIND={bind!r} is no IPv4 address of this machine: give one of {', '.join(own)}")
    workers = asked.get("workers", "0")
    if not workers.isdecimal() or int(workers) > MAX_WORKERS:
        raise ClusterError(f"SMOOTH_WORKERS={workers!r} is not a number of Ray nodes (0 to {MAX_WORKERS})")
    if database := asked.get("database"):
        _check_database(database)
    if store := asked.get("store"):
        parts = urlsplit(store)
        if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or parts.query:
            raise ClusterError(
                "SMOOTH_STORE is not of the form s3://bucket or s3://bucket/path; keys go into AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY or ~/.aws, the address of a store that is not Amazon's into AWS_ENDPOINT_URL"
            )
    return asked


def _check_database(url: str) -> None:
    form = "SMOOTH_DATABASE is not of the form postgresql://user:password@host:5432/name"
    try:
        parts = urlsplit(url)
        number = parts.port
    except ValueError as error:
        raise ClusterError(f"{form}: its port is not a number, or its host makes no sense") from error
    name = parts.path.removeprefix("/")
    if parts.scheme != "postgresql" or not parts.hostname or not parts.username or not name or number == 0:
        raise ClusterError(form)
    if not name.replace("_", "").isalnum() or not name.isascii():
        raise ClusterError(f"{form}: the name is of letters, digits and underscores")
    if parts.query or parts.fragment:
        raise ClusterError(f"{form}: nothing may follow the name; TLS is asked for with PGSSLMODE=require")
