"""Shards are proven whole before they are read, in any order of their members, on any filesystem."""

from __future__ import annotations

from pathlib import Path

import pytest

from smooth import store
from smooth.data import shards
from smooth.data.shards import Shard, ShardReader
from tests.shards import sample, write_ingest

SAMPLES = {f"{number:05d}": sample(bytes([number]) * 9000, f"größe {number} 🦊") for number in range(12)}


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_samples_are_read_by_key(tmp_path: Path, scheme: str, shuffled: bool) -> None:
    folder = f"{scheme}://{tmp_path}"
    (shard,) = Shard.of(write_ingest(folder, [SAMPLES], shuffled=shuffled))
    reader = ShardReader(folder, shard, "png")
    assert reader.keys == list(SAMPLES)
    for number, key in enumerate(reader.keys):
        read = reader.read(key)
        assert (read.picture, read.caption) == (SAMPLES[key]["png"], f"größe {number} 🦊")
        assert (read.original_size, read.failure) == ((100, 128), "")


@pytest.mark.parametrize("broken", [{"json": b"{"}, {"json": b"{}"}, {"txt": b"\xff"}])
def test_a_record_that_cannot_be_read_is_one_failure(tmp_path: Path, broken: dict[str, bytes]) -> None:
    samples = SAMPLES | {"00003": {**SAMPLES["00003"], **broken}}
    (shard,) = Shard.of(write_ingest(str(tmp_path), [samples]))
    reader = ShardReader(str(tmp_path), shard, "png")
    assert [key for key in reader.keys if reader.read(key).failure == shards.BROKEN_RECORD] == ["00003"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:50_000], r"00000\.tar is not a whole shard"),
        (lambda data: data[:-10_240], r"00000\.tar (is not a whole shard|has changed)"),
        (lambda data: data.replace(b"\x03" * 9000, b"\x03" * 8999 + b"\x04"), r"00000\.tar has changed"),
        (lambda data: data + b"\0", r"00000\.tar has changed"),
    ],
)
def test_a_damaged_shard_names_itself(tmp_path: Path, change, message: str) -> None:
    (shard,) = Shard.of(write_ingest(str(tmp_path), [SAMPLES]))
    path = tmp_path / shard.name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(store.ArtifactError, match=message):
        ShardReader(str(tmp_path), shard, "png")


def test_a_shard_with_other_members_than_counted_is_refused(tmp_path: Path) -> None:
    (shard,) = Shard.of(write_ingest(str(tmp_path), [SAMPLES]))
    with pytest.raises(store.ArtifactError, match="holds 12 pictures, the manifest counts 11"):
        ShardReader(str(tmp_path), Shard(shard.name, 11, shard.sha256), "png")
    (bare,) = Shard.of(write_ingest(str(tmp_path), [{"a": {"png": b"1", "txt": b"1"}}]))
    with pytest.raises(store.ArtifactError, match=r"lacks the member 'a\.json'"):
        ShardReader(str(tmp_path), bare, "png")
    with pytest.raises(store.ArtifactError, match=r"none\.tar is missing"):
        ShardReader(str(tmp_path), Shard("none.tar", 1, ""), "png")


def test_an_empty_shard_is_not_encoded(tmp_path: Path) -> None:
    assert len(Shard.of(write_ingest(str(tmp_path), [SAMPLES, {}]))) == 1
