"""Backups of a home: of one moment while others write, and nothing restored that isn't sound."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.backup.index import INDEX, verify
from infra.backup.parts import BackupError, Copier
from infra.backup.restore import restore
from infra.backup.save import save
from infra.local.layout import PROJECT
from smooth import store

ARTIFACT = "artifacts/train/0123"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a database, an artifact, what is being written, and a credential."""
    home = tmp_path / "home"
    with closing(database(home / "mlflow" / "mlflow.db")):
        pass
    for name, text in {
        f"{ARTIFACT}/weights.safetensors": "weights",
        f"{ARTIFACT}/deep/er.txt": "text",
        f"{ARTIFACT}/half{store.PARTIAL}": "ha",
        f"{ARTIFACT}/{store.MANIFEST}": "{}",
        "cluster/ray.token": "a secret",
        "mlflow/logins.ini": "a secret",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return home


def database(path: Path) -> sqlite3.Connection:
    """Two tables that always hold the same, in each state that was ever committed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
    for pragma in ("journal_mode = WAL", "synchronous = OFF"):  # no waiting for a disk that others use
        made.execute(f"PRAGMA {pragma}").close()
    for name in ("one", "other"):
        made.execute(f"CREATE TABLE IF NOT EXISTS {name} (number INTEGER, filling BLOB)").close()
    return made


def numbers(path: Path, table: str) -> list[int]:
    with closing(sqlite3.connect(path)) as opened:
        return [number for (number,) in opened.execute(f"SELECT number FROM {table} ORDER BY number")]


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Somebody commits to the database without a pause, first to one table, then to the other, in one transaction."""
    end, begun = threading.Event(), threading.Event()

    def write() -> None:
        with closing(database(path)) as opened:
            number = 0
            while not end.is_set():
                opened.execute("BEGIN IMMEDIATE").close()
                for table in ("one", "other"):
                    opened.execute(f"INSERT INTO {table} VALUES (?, randomblob(2000))", (number,)).close()
                opened.execute("COMMIT").close()
                number += 1
                if number == 300:
                    begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        end.set()
        writer.join()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_a_restored_home_holds_the_same_but_for_credentials(home: Path, tmp_path: Path) -> None:
    os.link(home / ARTIFACT / "weights.safetensors", home / ARTIFACT / "again.safetensors")
    (home / ARTIFACT / "deep" / "er.txt").chmod(0o640)
    save(home, tmp_path / "backup")
    restored = tmp_path / "elsewhere" / "home"
    restore(tmp_path / "backup", restored)
    kept = {
        name
        for name in names(home)
        if not name.startswith(("cluster/", "mlflow/logins")) and not name.endswith(store.PARTIAL)
    }
    assert names(restored) == kept
    assert {name for name in kept if (restored / name).read_bytes() != (home / name).read_bytes()} <= {
        "mlflow/mlflow.db"
    }
    assert (restored / ARTIFACT / "deep" / "er.txt").stat().st_mode & 0o777 == 0o640
    assert (restored / ARTIFACT / "weights.safetensors").samefile(restored / ARTIFACT / "again.safetensors")
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700, "others may look at the databases"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "elsewhere", "home"], "left-overs"


@pytest.mark.parametrize("name", ["mlflow/mlflow.db", "mlflow.db"])  # the second is that of a home without a server
def test_a_database_is_of_one_moment_while_it_is_written_to(home: Path, tmp_path: Path, name: str) -> None:
    path = home / name
    with written(path):
        assert path.with_name("mlflow.db-wal").stat().st_size > 0, "nothing of it would be missing in a raw copy"
        save(home, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    copy = tmp_path / "restored" / name
    found = numbers(copy, "one")
    assert found == list(range(len(found)))
    assert len(found) >= 300
    assert numbers(copy, "other") == found
    assert len(numbers(path, "one")) >= len(found)
    assert [name for name in names(tmp_path / "restored") if "-wal" in name or "-shm" in name] == []


def renamed(folder: Path, old: str, new: str) -> None:
    """Call a file otherwise in the index, as a hand that means ill would."""
    index = json.loads((folder / INDEX).read_text())
    index["files"][new] = index["files"].pop(old)
    (folder / INDEX).write_text(json.dumps(index))


def changed(folder: Path, **values: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | values))


WEIGHTS = f"{ARTIFACT}/weights.safetensors"
BREAKS = {
    "unfinished": (lambda folder: (folder / INDEX).unlink(), "no finished backup"),
    "index cut off": (lambda folder: os.truncate(folder / INDEX, 100), "can't be read"),
    "another format": (lambda folder: changed(folder, format=2), "has format 2"),
    "file cut off": (lambda folder: os.truncate(folder / WEIGHTS, 3), "is not what was saved"),
    "byte changed": (lambda folder: (folder / WEIGHTS).write_text("Weights"), "is not what was saved"),
    "file lost": (lambda folder: (folder / WEIGHTS).unlink(), "lost or gained 1 files"),
    "file gained": (lambda folder: (folder / "prefect.py").write_text("import"), "lost or gained 1 files"),
    "link": (lambda folder: (folder / "mlflow" / "passwd").symlink_to("/etc/passwd"), "is a link"),
    "linked folder": (lambda folder: (folder / "root").symlink_to("/"), "is a link"),
    "pipe": (lambda folder: os.mkfifo(folder / "pipe"), "or no file"),
    "path upwards": (lambda folder: renamed(folder, WEIGHTS, "../../.bashrc"), "names '../../.bashrc'"),
    "absolute path": (lambda folder: renamed(folder, WEIGHTS, "/etc/passwd"), "names '/etc/passwd'"),
    "credential": (lambda folder: renamed(folder, WEIGHTS, "cluster/ray.token"), "names 'cluster/ray.token'"),
    "users": (lambda folder: renamed(folder, WEIGHTS, "mlflow/logins.db"), "names 'mlflow/logins.db'"),
    "no name": (lambda folder: renamed(folder, WEIGHTS, "."), "names '.'"),
    "database elsewhere": (lambda folder: changed(folder, databases=["/etc/passwd"]), "names '/etc/passwd'"),
    "database unknown": (lambda folder: changed(folder, databases=["a.db"]), "names a database 'a.db'"),
}


@pytest.mark.parametrize("break_", BREAKS)
def test_a_backup_that_is_not_sound_writes_nothing(home: Path, tmp_path: Path, break_: str) -> None:
    backup = tmp_path / "backup"
    save(home, backup)
    act, message = BREAKS[break_]
    act(backup)  # type: ignore[no-untyped-call]
    with pytest.raises(BackupError, match=message):
        restore(backup, tmp_path / "away" / "home")
    assert not (tmp_path / "away").exists()


def test_a_damaged_database_is_found_when_it_is_saved_and_when_it_is_restored(home: Path, tmp_path: Path) -> None:
    with written(home / "mlflow" / "mlflow.db"):
        pass
    save(home, tmp_path / "good")
    with (home / "mlflow" / "mlflow.db").open("r+b") as handle:
        handle.seek(3 * 4096)
        handle.write(b"\xff" * 8192)
    with pytest.raises(BackupError, match=r"mlflow\.db is a damaged database"):
        save(home, tmp_path / "bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "home"]
    shutil.copy(home / "mlflow" / "mlflow.db", tmp_path / "good" / "mlflow")
    data = (home / "mlflow" / "mlflow.db").read_bytes()
    index = json.loads((tmp_path / "good" / INDEX).read_text())
    index["files"]["mlflow/mlflow.db"] = {"sha256": store.sha256(str(home / "mlflow/mlflow.db")), "bytes": len(data)}
    (tmp_path / "good" / INDEX).write_text(json.dumps(index))
    with pytest.raises(BackupError, match=r"mlflow\.db is a damaged database"):
        verify(tmp_path / "good")


def test_what_holds_anything_is_not_written_over(home: Path, tmp_path: Path) -> None:
    save(home, tmp_path / "backup")
    with pytest.raises(BackupError, match=r"backup holds artifacts.*give another, TO="):
        save(home, tmp_path / "backup")
    before = names(home)
    with pytest.raises(BackupError, match=r"home holds artifacts, cluster, mlflow; .*move that one away"):
        restore(tmp_path / "backup", home)
    assert names(home) == before
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "backup", tmp_path / "empty")
    assert (tmp_path / "empty" / WEIGHTS).is_file()


def test_what_a_copy_would_tear_or_lack_is_refused(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    with pytest.raises(BackupError, match="a part of itself"):
        save(home, home / "backup")
    with pytest.raises(BackupError, match="nothing to back up"):
        save(tmp_path / "nowhere", target)
    (home / ARTIFACT / "linked").symlink_to(home / WEIGHTS)
    with pytest.raises(BackupError, match="linked is a link"):
        save(home, target)
    (home / ARTIFACT / "linked").unlink()
    (home / "postgres").mkdir()
    (home / "postgres" / "PG_VERSION").write_text("17")
    with pytest.raises(BackupError, match="pg_dump"):
        save(home, target)
    assert not target.exists()


def test_artifacts_on_another_disk_are_followed(home: Path, tmp_path: Path) -> None:
    (home / "artifacts").rename(tmp_path / "big")
    (home / "artifacts").symlink_to(tmp_path / "big")
    save(home, tmp_path / "backup")
    assert (tmp_path / "backup" / WEIGHTS).read_text() == "weights"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_too_small_a_disk_is_told_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    save(home, tmp_path / "backup")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", small], check=False).returncode:
        pytest.skip("no right to mount")
    try:
        with pytest.raises(BackupError, match=r"small has 0\.00 GB free.*make room"):
            save(home, small / "backup")
        with pytest.raises(BackupError, match=r"small has 0\.00 GB free.*make room"):
            restore(tmp_path / "backup", small / "home")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_kill_leaves_no_backup_that_looks_like_one(home: Path, tmp_path: Path) -> None:
    (home / "artifacts" / "large").write_bytes(os.urandom(150 << 20))
    command = [sys.executable, "-m", "infra.backup", "save", "--to", str(tmp_path / "backup")]
    child = subprocess.Popen(command, cwd=PROJECT, env=os.environ | {"SMOOTH_HOME": str(home)})
    while not (staged := list(tmp_path.glob("backup.*/artifacts/large"))) or not staged[0].stat().st_size:
        assert child.poll() is None
    child.kill()
    child.wait()
    assert not (tmp_path / "backup").exists()
    (left,) = tmp_path.glob(f"backup.*{store.PARTIAL}")
    with pytest.raises(BackupError, match="no finished backup"):
        restore(left, tmp_path / "restored")


def test_the_commands_tell_what_they_did_and_what_to_do(home: Path, tmp_path: Path) -> None:
    def run(*words: str, **places: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "infra.backup", *words]
        environment = os.environ | {"PYTHONPATH": str(PROJECT)} | places
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    options = {"database": "postgresql://me:hidden@host/smooth", "store": "s3://bucket"}
    (home / "cluster" / "options.json").write_text(json.dumps(options))
    saved = run("save", SMOOTH_HOME=str(home))
    assert saved.returncode == 0, saved.stderr
    assert "4 files" in saved.stdout
    assert "1 databases" in saved.stdout
    assert "not in it: prefect's database" in saved.stdout
    assert "not in it: mlflow's database" not in saved.stdout
    assert "not in it: MLflow's artifacts in a bucket" in saved.stdout
    assert "hidden" not in saved.stdout
    folder = saved.stdout.split("FROM=")[1].strip()
    assert folder.startswith(".smooth-backups/")
    restored = run("restore", "--from", folder, SMOOTH_HOME="other")
    assert restored.returncode == 0, restored.stderr
    assert "make cluster-up" in restored.stdout
    refused = run("restore", "--from", folder, SMOOTH_HOME="other")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: ")
    assert "secret" not in saved.stdout + restored.stdout + refused.stderr


def test_a_manifest_is_never_saved_without_what_it_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is saved one artifact is finished, which comes too late, and then another one is taken away."""
    stage = home / ARTIFACT
    copy = Copier.copy
    rounds: list[int] = []

    def finished_meanwhile(copier: Copier, names: Iterable[str]) -> None:
        copy(copier, names)
        rounds.append(1)
        if len(rounds) == 1:
            late = home / "artifacts" / "train" / "late"
            late.mkdir()
            (late / "weights.safetensors").write_bytes(b"weights")
            (late / store.MANIFEST).write_text("{}")

    monkeypatch.setattr(Copier, "copy", finished_meanwhile)
    saved = save(home, tmp_path / "backup")
    assert len(rounds) == 2
    assert f"artifacts/train/late/{store.MANIFEST}" not in saved.files

    def taken_away(copier: Copier, names: Iterable[str]) -> None:
        copy(copier, names)
        shutil.rmtree(stage, ignore_errors=True)

    monkeypatch.setattr(Copier, "copy", taken_away)
    with pytest.raises(BackupError, match="again"):
        save(home, tmp_path / "second")
    assert not (tmp_path / "second").exists()
