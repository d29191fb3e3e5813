"""Restore a backup into an empty home."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from infra.backup.index import Index, verify
from infra.backup.parts import BackupError, Copier, check_empty, check_space
from smooth import store

UNDER_WAY = ("PENDING", "RUNNING", "CANCELLING")
"""States of a flow run that holds its place."""


def restore(source: Path, home: Path) -> Index:
    """Bring a backup into ``home``, at once or not at all, and return what it holds.

    Raises:
        BackupError: ``home`` isn't empty, or the backup isn't sound; nothing was written then.
    """
    home = home.resolve()
    check_empty(home, "a backup is restored into an empty home: move that one away, or set SMOOTH_HOME to another")
    index = verify(source)
    check_space(home.parent, sum(entry.bytes for entry in index.files.values()))
    home.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f"{home.name}.", suffix=store.PARTIAL, dir=home.parent))
    try:
        copier = Copier(source, staged)
        copier.copy(index.files)
        if copier.entries != index.files:
            raise BackupError(f"{source} changed while it was read; keep others away from it, and restore again")
        staged.replace(home)  # only over an empty folder: where a cluster was started meanwhile, it fails
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return index


def under_way(home: Path) -> int:
    """How many flow runs of a restored home were under way when it was saved.

    Nobody goes on with them, and Prefect counts them against the limit of their deployment until they are ended.
    """
    path = home / "prefect" / "prefect.db"
    if not path.is_file():
        return 0
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        places = ", ".join("?" * len(UNDER_WAY))
        query = f"SELECT count(*) FROM flow_run WHERE state_type IN ({places})"  # noqa: S608 - question marks alone
        return int(database.execute(query, UNDER_WAY).fetchone()[0])
