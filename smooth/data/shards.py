"""WebDataset shards as they lie in storage: proven whole, then read picture by picture in key order.

A shard is never unpacked to disk and never whole in memory, and its members may lie in any order
(img2dataset by itself writes them as downloads end).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from smooth import store

TOGETHER_BYTES = 16_384  # of headers and padding among a sample's members that are read along, rather than skipped
BROKEN_RECORD = "broken_record"


@dataclass(frozen=True)
class Shard:
    """A shard as the manifest of ingest counts it."""

    name: str
    rows: int
    sha256: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> list[Shard]:
        """The shards of an ingest manifest that hold pictures."""
        return [cls(item["name"], item["rows"], item["sha256"]) for item in manifest["shards"] if item["rows"]]


@dataclass(frozen=True)
class Sample:
    """One picture as ingest left it. ``failure`` names what is wrong with the record, and is empty otherwise."""

    key: str
    picture: bytes
    caption: str
    original_size: tuple[int, int]  # height, width in pixels, before ingest resized it
    failure: str = ""


class ShardReader:
    """Random access to a shard's samples, from any number of threads."""

    def __init__(self, folder: str, shard: Shard, encoding: str) -> None:
        """Read the shard of ``folder`` once from end to end, to hash it and to learn what lies where.

        ``encoding`` is the extension of its pictures.

        Raises:
            ArtifactError: the shard is missing, cut, or not the one that the manifest of ingest counts.
        """
        self.path = store.join(folder, shard.name)
        self._fs, self._inner = store.filesystem(self.path)
        again = f"delete {folder} and run ingest again"
        try:
            with self._fs.open(self._inner, "rb") as handle:
                members, sha256 = _members(handle)
        except FileNotFoundError as error:
            raise store.ArtifactError(f"{self.path} is missing; {again}") from error
        except tarfile.TarError as error:
            raise store.ArtifactError(f"{self.path} is not a whole shard ({error}); {again}") from error
        if sha256 != shard.sha256:
            raise store.ArtifactError(f"{self.path} has changed since it was ingested (SHA-256 {sha256}); {again}")
        suffix = f".{encoding}"
        self.keys = sorted(name.removesuffix(suffix) for name in members if name.endswith(suffix))
        if len(self.keys) != shard.rows:
            raise store.ArtifactError(
                f"{self.path} holds {len(self.keys)} pictures, the manifest counts {shard.rows}; {again}"
            )
        try:
            self._places = {
                key: [members[f"{key}.{extension}"] for extension in (encoding, "txt", "json")] for key in self.keys
            }
        except KeyError as error:
            raise store.ArtifactError(f"{self.path} lacks the member {error}; {again}") from error

    def read(self, key: str) -> Sample:
        """One sample; a record that can't be understood is one with a failure."""
        picture, caption, facts = self._contents(self._places[key])
        try:
            read = json.loads(facts)
            size = int(read["original_height"]), int(read["original_width"])
            return Sample(key, picture, caption.decode(), size)
        except (ValueError, KeyError, TypeError):
            return Sample(key, picture, "", (0, 0), BROKEN_RECORD)

    def _contents(self, places: Iterable[tuple[int, int]]) -> list[bytes]:
        """The bytes of some members: by one request where they lie side by side, as writers put them."""
        spans = [(offset, offset + size) for offset, size in places]
        first, last = min(start for start, _ in spans), max(end for _, end in spans)
        if last - first > sum(end - start for start, end in spans) + TOGETHER_BYTES:
            return [self._fs.cat_file(self._inner, start=start, end=end) for start, end in spans]
        data = self._fs.cat_file(self._inner, start=first, end=last)
        return [data[start - first : end - first] for start, end in spans]


class _HashedReads(io.RawIOBase):
    """A file object that hashes what is read of it."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._handle.read(size)
        self.digest.update(data)
        return data


def _members(handle: BinaryIO) -> tuple[dict[str, tuple[int, int]], str]:
    """Offset and size of each file in a tar, and the SHA-256 of the tar, in one pass."""
    hashed = _HashedReads(handle)
    with tarfile.open(fileobj=hashed, mode="r|") as archive:
        members = {member.name: (member.offset_data, member.size) for member in archive if member.isfile()}
    while hashed.read(1 << 20):  # padding behind the last member
        pass
    return members, hashed.digest.hexdigest()
