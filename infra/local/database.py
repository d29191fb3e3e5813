"""PostgreSQL in place of SQLite: a database for MLflow and one for Prefect on the server of ``$SMOOTH_DATABASE``.

The password goes by ``PGPASSWORD``, which both drivers read: no URL that a service could print holds it.

In either, an experiment's artifacts lie where MLflow's server puts them. MLflow takes any location from whoever may
make an experiment, and then writes files there: ``file:///home/somebody`` among them. No variable of it forbids that,
so its database does.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from infra.local.layout import PROJECT, ClusterError

CONNECT_SECONDS = 20.0
# MLflow makes the row first, with an empty place, and then names its own.
OWN_PLACE = "'mlflow-artifacts:/' || {row}experiment_id"
REFUSAL = "artifacts of this server lie where it puts them: leave artifact_location out"


def name(database: str, service: str) -> str:
    """Name of a service's database."""
    return f"{urlsplit(database).path.removeprefix('/')}_{service}"


def url(database: str, service: str, driver: str) -> str:
    """SQLAlchemy's URL of a service's database, without the password."""
    parts = urlsplit(database)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{driver}://{quote(unquote(parts.username or ''))}@{host}:{parts.port or 5432}/{name(database, service)}"


def environment(database: str) -> dict[str, str]:
    """The variables that a service needs beside the URL."""
    password = urlsplit(database).password
    return {} if password is None else {"PGPASSWORD": unquote(password)}


def prepare(database: str, service: str) -> None:
    """Make the service's database if the server lacks it.

    Raises:
        ClusterError: a driver is missing, the server can't be reached, or this user may not make a database.
    """
    if importlib.util.find_spec("psycopg2") is None:
        lock = PROJECT / "infra" / "requirements.cluster.lock"
        raise ClusterError(f"SMOOTH_DATABASE needs psycopg2: .venv/bin/python -m pip install --no-deps -r {lock}")
    asyncio.run(_create(database, name(database, service)))


async def _connected(url: str, told: str = "SMOOTH_DATABASE", **chosen: str) -> Any:
    """A connection of asyncpg's; errors name the URL's variable, as ``told``.

    Raises:
        ClusterError: the server does not answer, or refuses.
    """
    import asyncpg

    try:
        return await asyncpg.connect(url, timeout=CONNECT_SECONDS, **chosen)
    except TimeoutError as error:
        raise ClusterError(f"{told}: the server does not answer; look at its host and port") from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ClusterError(f"{told}: {_without(url, str(error))}") from error


async def _create(database: str, wanted: str) -> None:
    import asyncpg

    connection = await _connected(database)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", wanted):
            await connection.execute(f'CREATE DATABASE "{wanted}"')  # its letters were checked
    except asyncpg.DuplicateDatabaseError:
        return
    except asyncpg.PostgresError as error:
        raise ClusterError(
            f"SMOOTH_DATABASE: {_without(database, str(error))}; have somebody run CREATE DATABASE {wanted} "
            f"OWNER {urlsplit(database).username}"
        ) from error
    finally:
        await connection.close()


def _without(database: str, text: str) -> str:
    password = urlsplit(database).password
    return text.replace(database, "***").replace(password, "***") if password else text


def confine_sqlite(path: Path) -> None:
    """Have MLflow's SQLite database refuse a location of a user's own; experiments that are there stay."""
    row = OWN_PLACE.format(row="NEW.")
    with closing(sqlite3.connect(path, timeout=CONNECT_SECONDS)) as connection:
        for event in ("INSERT", "UPDATE"):
            connection.execute(
                f"CREATE TRIGGER IF NOT EXISTS smooth_place_{event} AFTER {event} ON experiments "
                f"WHEN NEW.artifact_location NOT IN ('', {row}) BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
            )


def confine(database: str, service: str) -> None:
    """The same for MLflow's database on PostgreSQL."""
    asyncio.run(_confine(database, database=name(database, service)))


def confine_tables(url: str, told: str) -> None:
    """The same for the very database of ``url``, which a variable ``told`` holds."""
    asyncio.run(_confine(url, told=told))


async def _confine(url: str, **chosen: str) -> None:
    connection = await _connected(url, **chosen)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_constraint WHERE conname = 'smooth_place'"):
            # Not valid: what is there already stays, and may not be changed.
            await connection.execute(
                "ALTER TABLE experiments ADD CONSTRAINT smooth_place "
                f"CHECK (artifact_location IN ('', {OWN_PLACE.format(row='')})) NOT VALID"
            )
    finally:
        await connection.close()
