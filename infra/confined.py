"""``python -m infra.confined COMMAND...``: confine MLflow's database at each start, then become COMMAND, its server.

The database is that of ``$MLFLOW_BACKEND_STORE_URI``; :mod:`infra.local.database` tells why. It is confined before
anybody is answered, so an empty one is first given its tables, by MLflow's own command. A database of an older MLflow
stays as it is: upgrading it is a person's decision.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from infra.local import database
from infra.local.layout import ClusterError, program

BACKEND = "MLFLOW_BACKEND_STORE_URI"
SQLITE = "sqlite:///"


def confine(url: str) -> None:
    """Have the database of ``url``, as SQLAlchemy writes it, refuse artifact locations of a user's own.

    Raises:
        ClusterError: it can't be reached, or is neither PostgreSQL nor SQLite.
        CalledProcessError: MLflow could not make its tables.
    """
    from sqlalchemy import create_engine, exc, inspect

    driver, _, place = url.partition("://")
    if driver.partition("+")[0] not in ("postgresql", "sqlite"):
        raise ClusterError(f"{BACKEND} is of {driver or 'nothing'}: give a database of PostgreSQL or SQLite")
    try:
        engine = create_engine(url)
        is_made = inspect(engine).has_table("experiments")
        engine.dispose()
    except (exc.SQLAlchemyError, ImportError) as error:
        raise ClusterError(f"{BACKEND}: {error}") from error
    if not is_made:
        subprocess.run([program("mlflow"), "db", "upgrade", url], check=True)
    if url.startswith(SQLITE):
        database.confine_sqlite(Path(url.removeprefix(SQLITE)))
    else:
        database.confine_tables(f"postgresql://{place}", BACKEND)


def main() -> None:
    """Run the command, which ends this process or becomes it."""
    command = sys.argv[1:]
    if not command:
        sys.exit("error: name the server's command: python -m infra.confined mlflow server")
    try:
        confine(os.environ.get(BACKEND, ""))
    except (ClusterError, sqlite3.Error, subprocess.CalledProcessError) as error:
        sys.exit(f"error: MLflow's database can't be confined: {error}")
    os.execvp(command[0], command)  # noqa: S606 - signals are to reach the server itself


if __name__ == "__main__":
    main()
