"""Save a home while its services run.

Databases come first, each as it is at one moment; then the files that say what others exist; then all others. Whatever
a database or a manifest names was written before it was named, so it is there when its turn comes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath

from infra.backup.index import FORMAT, INDEX, Index, is_left_out, verify
from infra.backup.parts import BackupError, Copier, check_empty, check_space, copy_database, is_database
from infra.local.options import Options
from smooth import store

NAMING = (store.MANIFEST, "checkpoint_manager_snapshot.json")  # files that name others; the second is Ray Train's
BESIDE_DATABASES = ("-wal", "-shm", "-journal")
POSTGRES = "PG_VERSION"  # a file in each of PostgreSQL's data folders


def save(home: Path, target: Path) -> Index:
    """Back ``home`` up into the new folder ``target``, which appears whole and checked, or not at all.

    Raises:
        BackupError: there is nothing to save, or something that can't be, or ``target`` won't do.
    """
    home, target = home.resolve(), target.absolute()
    if target.resolve().is_relative_to(home):
        raise BackupError(f"{target} lies in {home}, and would be a part of itself; give a folder elsewhere: TO=...")
    check_empty(target, "a backup is written into a new folder: give another, TO=...")
    found = list(files(home))
    if not found:
        raise BackupError(f"{home} holds nothing to back up; SMOOTH_HOME names another home")
    check_space(target.parent, _size(home, found))
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=store.PARTIAL, dir=target.parent))
    try:
        index = _copy(home, staged, [name for name in found if is_database(home / name)])
        (staged / INDEX).write_text(index.model_dump_json(indent=1))
        verify(staged)
        staged.replace(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return index


def elsewhere(home: Path, index: Index) -> list[str]:
    """What belongs to the cluster of ``home`` and lies outside of it, and who saves that."""
    found = [
        f"{name}'s database, which is not in {home}: where it is on PostgreSQL, save it by pg_dump (infra/README.md)"
        for name in ("mlflow", "prefect")
        if f"{name}/{name}.db" not in index.databases
    ]
    if Options.read(home / "cluster" / "options.json").store:
        found.append("MLflow's artifacts in a bucket ($SMOOTH_STORE): its own versions or copies save them")
    return found


def _copy(home: Path, staged: Path, databases: list[str]) -> Index:
    copier = Copier(home, staged)
    copier.entries |= {name: copy_database(home / name, staged / name) for name in databases}
    there = list(files(home))
    copier.copy(name for name in there if _names_others(name))
    # What is gone by now is among them, and missed by `_check_whole`; what has come since is saved, too.
    rest = [name for name in dict.fromkeys([*there, *files(home)]) if not _names_others(name)]
    copier.copy(name for name in rest if name not in databases and not is_database(home / name))
    _check_whole(copier)
    versions = {name: metadata.version(name) for name in ("smooth", "mlflow", "prefect")}
    return Index(format=FORMAT, made=datetime.now(UTC), versions=versions, databases=databases, files=copier.entries)


def files(home: Path) -> Iterator[str]:
    """All that is saved of a home, relative to it; what is being written has a name of its own and is left out.

    Raises:
        BackupError: a link, or a database that a copy of its files would tear.
    """
    tops = sorted(home.iterdir()) if home.is_dir() else []
    yield from _saved(home, home, [top.name for top in tops if not top.is_dir()])
    for top in tops:
        if not top.is_dir() or is_left_out(PurePosixPath(top.name)):
            continue
        # A link to another disk in the place of a whole folder is a person's way to make room: it is followed.
        for folder, folders, names in os.walk(top):
            _refuse_links(Path(folder), folders)
            yield from _saved(home, Path(folder), names)


def _saved(home: Path, folder: Path, names: list[str]) -> Iterator[str]:
    if POSTGRES in names:
        raise BackupError(f"{folder} is PostgreSQL's: save it by pg_dump (infra/README.md); its files would be torn")
    _refuse_links(folder, names)
    beside = {f"{name}{end}" for name in names for end in BESIDE_DATABASES}
    for name in names:
        path = PurePosixPath((folder / name).relative_to(home))
        passing = name.endswith(store.PARTIAL) or name in beside
        if not passing and not is_left_out(path) and (folder / name).is_file():
            yield str(path)


def _refuse_links(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if (folder / name).is_symlink():
            raise BackupError(f"{folder / name} is a link: what it leads to would be missing; put that in its place")


def _names_others(name: str) -> bool:
    return PurePosixPath(name).name in NAMING


def _size(home: Path, names: Iterable[str]) -> int:
    total = 0
    for name in names:
        with suppress(FileNotFoundError):  # deleted meanwhile
            total += (home / name).stat().st_size
    return total


def _check_whole(copier: Copier) -> None:
    """Refuse a backup that lacks what was deleted meanwhile although a manifest names it."""
    named = {PurePosixPath(name).parent for name in copier.entries if PurePosixPath(name).name == store.MANIFEST}
    for name in copier.vanished:
        if not named.isdisjoint(PurePosixPath(name).parents):
            raise BackupError(f"{name} was deleted while it was being saved; back up again")
