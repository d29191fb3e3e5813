"""Artifacts: whole or absent, complete only with a manifest, on any filesystem."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from smooth import store


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_a_folder_is_complete_with_its_manifest(folder: str) -> None:
    artifact = store.join(folder, "train", "abc")
    store.write_bytes(store.join(artifact, "weights.bin"), b"1234")
    assert not store.is_complete(artifact)
    assert store.write_manifest(artifact, {"stage": "train"}) == {"stage": "train"}
    assert store.is_complete(artifact)
    assert store.read_manifest(artifact) == {"stage": "train"}
    assert store.read_bytes(store.join(artifact, "weights.bin")) == b"1234"


def test_a_write_replaces_the_whole_file_and_leaves_no_partial(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    store.write_bytes(str(path), b"a long first content")
    store.write_bytes(str(path), b"short")
    assert path.read_bytes() == b"short"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_missing_manifest_says_what_to_do(folder: str) -> None:
    with pytest.raises(store.ArtifactError, match=r"no manifest\.json\. Run the stage that makes it first"):
        store.read_manifest(store.join(folder, "nothing"))


def test_a_broken_manifest_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{half")
    with pytest.raises(store.ArtifactError, match="delete the folder"):
        store.read_manifest(str(tmp_path))


def test_sha256_is_the_files(folder: str) -> None:
    content = bytes(range(256)) * 5000
    path = store.join(folder, "file")
    store.write_bytes(path, content)
    assert store.sha256(path) == hashlib.sha256(content).hexdigest()


def test_chunks_give_everything_in_order() -> None:
    assert list(store.chunks(io.BytesIO(b"abcdefg"), 3)) == [b"abc", b"def", b"g"]


def test_join_keeps_the_scheme() -> None:
    assert store.join("s3://bucket/a", "b", "c") == "s3://bucket/a/b/c"


def test_a_write_that_fails_leaves_what_was_there_and_no_partial(folder: str) -> None:
    path = store.join(folder, "file")
    store.write_bytes(path, b"first")

    def fail() -> None:
        with store.writing(path) as handle:
            handle.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.read_bytes(path) == b"first"
    fs, inner = store.filesystem(folder)
    assert len(fs.ls(inner)) == 1
