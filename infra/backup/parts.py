"""What saving and restoring share: copies that are hashed on the way, databases, the room they need."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from smooth import store

DATABASE_HEADER = b"SQLite format 3\0"
BUSY_SECONDS = 60.0
PERMISSIONS = 0o777


class BackupError(ValueError):
    """It can't be saved or restored as asked; the message says what to do."""


class Entry(BaseModel):
    """One file of a backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Copier:
    """Copies files of one folder into another; hard links stay linked to each other."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source = source
        self._target = target
        self._linked: dict[tuple[int, int], str] = {}
        self.entries: dict[str, Entry] = {}
        """What was copied, as it was read."""
        self.vanished: list[str] = []
        """What was gone when its turn came."""

    def copy(self, names: Iterable[str]) -> None:
        """Copy the files of these names, relative to the source."""
        for name in names:
            try:
                with (self._source / name).open("rb") as handle:
                    self.entries[name] = self._copy(name, handle)
            except FileNotFoundError:
                self.vanished.append(name)

    def _copy(self, name: str, handle: BinaryIO) -> Entry:
        target = self._target / name
        target.parent.mkdir(parents=True, exist_ok=True)
        stat = os.fstat(handle.fileno())
        if stat.st_nlink > 1:
            first = self._linked.setdefault((stat.st_dev, stat.st_ino), name)
            if first != name and _linked(self._target / first, target):
                return self.entries[first]
        digest, size = hashlib.sha256(), 0
        with target.open("xb") as output:
            for block in store.chunks(handle):
                digest.update(block)
                size += output.write(block)
        target.chmod(stat.st_mode & PERMISSIONS)
        return Entry(sha256=digest.hexdigest(), bytes=size)


def _linked(first: Path, target: Path) -> bool:
    try:
        os.link(first, target)
    except OSError:  # a filesystem without hard links
        return False
    return True


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_database(path: Path) -> bool:
    """Whether ``path`` is there, and a database of SQLite."""
    try:
        with path.open("rb") as handle:
            return handle.read(len(DATABASE_HEADER)) == DATABASE_HEADER
    except FileNotFoundError:
        return False


def copy_database(source: Path, target: Path) -> Entry:
    """Copy a database as it is at one moment, whoever writes to it meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not read-only: SQLite then can't make the files that it needs beside a database with a write-ahead log.
    live = sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)
    with closing(live), closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE").close()  # one file; a server sets what it wants
    target.chmod(source.stat().st_mode & PERMISSIONS)
    return Entry(sha256=sha256(target), bytes=target.stat().st_size)


def check_database(path: Path) -> None:
    """Refuse a damaged database, without writing beside it.

    Raises:
        BackupError: SQLite's own check finds a fault.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            (answer, *_) = database.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        answer = str(error)
    if answer != "ok":
        raise BackupError(f"{path} is a damaged database: {answer}; use an earlier backup, or mend the original")


def check_empty(folder: Path, cure: str) -> None:
    """Refuse a folder that holds anything.

    Raises:
        BackupError: with ``cure`` in its message.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BackupError(f"{folder} is no folder; {cure}")
    if folder.is_dir() and (held := sorted(path.name for path in folder.iterdir())):
        raise BackupError(f"{folder} holds {', '.join(held[:4])}; {cure}")


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk of ``folder``, which need not be there yet, has no room for.

    Raises:
        BackupError: fewer than ``needed`` bytes are free.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BackupError(f"{folder} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed: make room there")
