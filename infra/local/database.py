"""PostgreSQL in place of SQLite: a database for MLflow and one for Prefect on the server of ``$SMOOTH_DATABASE``.

The password goes by ``PGPASSWORD``, which both drivers read: no URL that a service could print holds it.
"""

from __future__ import annotations

import asyncio
import importlib.util
from urllib.parse import quote, unquote, urlsplit

from infra.local.layout import PROJECT, ClusterError

CONNECT_SECONDS = 20.0


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
    try:
        asyncio.run(_create(database, name(database, service)))
    except TimeoutError as error:
        raise ClusterError("SMOOTH_DATABASE: the server does not answer; look at its host and port") from error


async def _create(database: str, wanted: str) -> None:
    import asyncpg

    try:
        connection = await asyncpg.connect(database, timeout=CONNECT_SECONDS)
    except (OSError, asyncpg.PostgresError) as error:
        raise ClusterError(f"SMOOTH_DATABASE: {_without(database, str(error))}") from error
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
