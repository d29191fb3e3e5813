"""A training waits for space on a full disk."""

import errno
import logging
from pathlib import Path

import pytest

from smooth.train import storage
from smooth.train.storage import patiently


def test_a_full_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "RETRY_S", 0.01)
    disks = [Path("/dev/full"), Path("/dev/full"), tmp_path / "free"]
    with caplog.at_level(logging.WARNING):
        assert patiently(lambda: disks.pop(0).write_text("two"), "the checkpoint") == 3
    assert (tmp_path / "free").read_text() == "two"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "no space left for the checkpoint" in said[0]
    assert "train.best_checkpoints" in said[0]
    assert "space again" in said[1]


def test_patience_ends_and_other_errors_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_S", 0.01)
    monkeypatch.setattr(storage, "PATIENCE_S", 0.05)
    with pytest.raises(OSError, match="No space left") as caught:
        patiently(lambda: Path("/dev/full").write_text("two"), "the checkpoint")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(storage, "PATIENCE_S", 1000)
    with pytest.raises(FileNotFoundError):
        patiently(lambda: (tmp_path / "missing" / "file").write_text("two"), "the checkpoint")
