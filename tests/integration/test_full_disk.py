"""A disk that is full: each stage that meets it names the path and the way out, and ends once there is space."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smooth import stages, store
from smooth.config import RunConfig
from smooth.store import DiskFullError
from tests import undisturbed

pytestmark = pytest.mark.usefixtures("ray_local")
DISK_MB = 4


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which tests may fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system of its own")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, but: int = 0) -> Path:
    """Leave ``but`` bytes."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    size = free.f_bavail * free.f_frsize - but
    with filler.open("wb") as file:
        file.write(bytes(size))
    return filler


def test_a_file_that_is_not_whole_is_not_there(disk: Path) -> None:
    filler = fill(disk)
    with pytest.raises(DiskFullError, match=rf"no space left on the disk of {disk}/a/b\.bin \(0\.0 MiB free\)") as full:
        store.write_bytes(f"{disk}/a/b.bin", bytes(1 << 20))
    assert "storage.root" in str(full.value)
    assert not list(disk.rglob("b.bin*"))
    filler.unlink()
    store.write_bytes(f"{disk}/a/b.bin", bytes(1 << 20))


def test_ingest_and_latents_name_the_disk_and_end_when_there_is_space(disk: Path, tmp_path: Path) -> None:
    with undisturbed.listed(tmp_path, timeout_s=2) as overrides:
        config = undisturbed.config_of(disk, overrides)
        for stage in ("ingest", "latents"):
            filler = fill(disk, but=64 << 10)
            with pytest.raises(Exception, match=rf"no space left on the disk of {disk}/{stage}/") as full:
                stages.run(stage, config)
            assert "storage.root" in str(full.value)
            assert not store.is_complete(config.stage_dir(stage))
            filler.unlink()
            stages.run(stage, config)


def test_a_config_that_can_not_be_saved(disk: Path) -> None:
    """What the flow writes before each stage."""
    fill(disk)
    config = RunConfig.load("tiny", [f"storage.root={disk}"])
    with pytest.raises(DiskFullError, match=f"{disk}/configs/train.yaml"):
        store.write_bytes(store.join(config.storage.root, "configs", "train.yaml"), config.to_yaml().encode())
