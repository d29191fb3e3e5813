"""``backup.json``: what a backup holds, and whether it still does."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.backup.parts import BackupError, Entry, check_database, sha256

FORMAT = 1
INDEX = "backup.json"
LEFT_OUT = ("cluster", "mlflow/logins.db", "mlflow/logins.ini")
"""of the home: credentials, addresses, process ids, logs; and the users of MLflow, whose passwords they are"""


class Index(BaseModel):
    """All that a backup holds; written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    made: datetime
    versions: dict[str, str]
    """Of the programs that own the databases."""
    databases: list[str]
    files: dict[str, Entry]

    def told(self) -> str:
        """In words."""
        size = sum(entry.bytes for entry in self.files.values())
        return f"{len(self.files)} files, {size / 1e6:.1f} MB, {len(self.databases)} databases"


def is_left_out(name: PurePosixPath) -> bool:
    """Whether it lies in what no backup holds."""
    return any(name.is_relative_to(one) for one in LEFT_OUT)


def verify(folder: Path) -> Index:
    """Read every byte of a backup and return what it holds.

    Raises:
        BackupError: it is broken off or changed, or holds what no backup does: a link, a path that leads out of it.
    """
    index = _read(folder)
    there = _contents(folder)
    for name in (*index.files, *index.databases):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or not path.parts or is_left_out(path):
            raise BackupError(f"{folder / INDEX} names {name!r}, which no backup holds: nobody should restore this")
    if odd := sorted(index.files.keys() ^ there):
        raise BackupError(f"{folder} has lost or gained {len(odd)} files, as {odd[0]!r}; use another backup")
    if odd := sorted(set(index.databases) - index.files.keys()):
        raise BackupError(f"{folder / INDEX} names a database {odd[0]!r} that is no file of it; use another backup")
    for name, entry in index.files.items():
        if (folder / name).stat().st_size != entry.bytes or sha256(folder / name) != entry.sha256:
            raise BackupError(f"{folder / name} is not what was saved (size or SHA-256 differ); use another backup")
    for name in index.databases:
        check_database(folder / name)
    return index


def _read(folder: Path) -> Index:
    try:
        index = Index.model_validate_json((folder / INDEX).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BackupError(f"{folder} is no finished backup: it has no {INDEX}; give another folder: FROM=...") from None
    except ValidationError as error:
        raise BackupError(f"{folder / INDEX} can't be read ({error.errors()[0]['msg']}); use another backup") from error
    if index.format != FORMAT:
        raise BackupError(f"{folder} has format {index.format}, this version reads {FORMAT}: restore it with its own")
    return index


def _contents(folder: Path) -> set[str]:
    """Names of all files but the index."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BackupError(f"{path} is a link or no file, which no backup holds: nobody should restore this")
        if path.is_file():
            found.add(path.relative_to(folder).as_posix())
    return found - {INDEX}
