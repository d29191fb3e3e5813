"""A training's own writes: whole or not at all, and patient with a full disk."""

import errno
import logging
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from smooth.train import storage
from smooth.train.storage import WholeFiles, patiently


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    files = pickle.loads(pickle.dumps(WholeFiles()))
    assert isinstance(files, LocalFileSystem)  # Ray opens checkpoints in place on those alone
    path = tmp_path / "list.json"
    with files.open_output_stream(str(path)) as file:
        file.write(b"one")
    with suppress(KeyboardInterrupt), files.open_output_stream(str(path)) as file:
        file.write(b"tw")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


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
