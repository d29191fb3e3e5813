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
from typing import TYPE_CHECKING

from infra.local import database
from infra.local.layout import ClusterError, program

if TYPE_CHECKING:
    from sqlalchemy import URL

BACKEND = "MLFLOW_BACKEND_STORE_URI"
SQLITE = "sqlite:///"


def confine(url: str) -> None:
    """Have the database of ``url``, as SQLAlchemy writes it, refuse artifact locations of a user's own.

    Raises:
        ClusterError: it can't be reached, is neither PostgreSQL nor SQLite, or MLflow could not make its tables.
    """
    from sqlalchemy import create_engine, exc, inspect, make_url

    try:
        given = make_url(url)
    except (exc.ArgumentError, ValueError):  # whose text may be a piece of the password
        how = "write /, @ and : of a password as %2F, %40 and %3A"
        raise ClusterError(f"{BACKEND} is no URL of a database; {how}") from None
    if given.get_backend_name() not in ("postgresql", "sqlite"):
        raise ClusterError(f"{BACKEND} is of {given.get_backend_name()}: give a database of PostgreSQL or SQLite")
    try:
        engine = create_engine(given)
        is_made = inspect(engine).has_table("experiments")
        engine.dispose()
    except (exc.SQLAlchemyError, ImportError) as error:
        raise ClusterError(f"{BACKEND}: {error}") from error
    if not is_made:
        _make_tables(given)
    if url.startswith(SQLITE):
        database.confine_sqlite(Path(url.removeprefix(SQLITE)))
    else:
        database.confine_tables(f"postgresql://{url.partition('://')[2]}", BACKEND)


def _make_tables(url: URL) -> None:
    """By MLflow's own command. Everybody may read a command line, so the password goes by a variable of PostgreSQL's.

    Raises:
        ClusterError: it failed.
    """
    password = {} if url.password is None else {"PGPASSWORD": url.password}
    command = [program("mlflow"), "db", "upgrade", url._replace(password=None).render_as_string(hide_password=False)]
    made = subprocess.run(command, env=os.environ | password, check=False)
    if made.returncode:
        raise ClusterError(f"{BACKEND}: MLflow could not make its tables (exit status {made.returncode}); see above")


def main() -> None:
    """Run the command, which ends this process or becomes it."""
    command = sys.argv[1:]
    if not command:
        sys.exit("error: name the server's command: python -m infra.confined mlflow server")
    try:
        confine(os.environ.get(BACKEND, ""))
    except (ClusterError, sqlite3.Error) as error:
        sys.exit(f"error: MLflow's database can't be confined: {error}")
    os.execvp(command[0], command)  # noqa: S606 - signals are to reach the server itself


if __name__ == "__main__":
    main()
