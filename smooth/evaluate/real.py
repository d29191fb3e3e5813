"""Real pictures of a run's own data: references of distances, and what is inverted and painted again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ImageOps
from PIL.Image import Resampling

from smooth import store
from smooth.config import ConfigError
from smooth.data import pictures
from smooth.data.shards import Sample, Shard, ShardReader

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Captioned:
    """Pictures with their captions."""

    pictures: npt.NDArray[np.uint8]
    """(R, size, size, 3)"""
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """A picture's file, and what to call it."""

    name: str
    data: bytes


def reference_pictures(ingest: str, count: int, seed: int, batch: int) -> Iterator[list[Encoded]]:
    """Batches of a random subset of the ingested pictures, at most ``count`` in all."""
    drawn = (Encoded(sample.key, sample.picture) for sample in _drawn(ingest, count, f"{seed}/reference"))
    while waiting := list(itertools.islice(drawn, batch)):
        yield waiting


def folder_pictures(folder: str, count: int, seed: int, batch: int) -> Iterator[list[Encoded]]:
    """Likewise of the pictures below a folder, on any fsspec path.

    Raises:
        ConfigError: there are fewer than two.
    """
    fs, inner = store.filesystem(folder)
    files = sorted(path for path in fs.find(inner) if path.lower().endswith(SUFFIXES))
    if len(files) < 2:
        raise ConfigError(
            f"evaluate.reference={folder} holds {len(files)} pictures ({', '.join(SUFFIXES)}); give a folder of more"
        )
    chosen = sorted(random.Random(f"{seed}/reference").sample(files, min(count, len(files))))
    drawn = (Encoded(path, fs.cat_file(path)) for path in chosen)
    while waiting := list(itertools.islice(drawn, batch)):
        yield waiting


def decoded(batch: Sequence[Encoded], size: int) -> npt.NDArray[np.uint8]:
    """Reference pictures as (B, size, size, 3) uint8.

    Raises:
        ConfigError: one can't be decoded.
    """
    fitted = []
    for encoded in batch:
        try:
            fitted.append(_fitted(encoded.data, size))
        except pictures.PictureError as error:
            raise ConfigError(
                f"the reference {encoded.name} is no picture that can be read: {error}; remove it from "
                "evaluate.reference, or run ingest again"
            ) from error
    return np.stack(fitted)


def _fitted(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    return np.asarray(ImageOps.fit(pictures.decode(data), (size, size), Resampling.LANCZOS))


def captioned_pictures(ingest: str, count: int, size: int, seed: int) -> Captioned:
    """Another such subset with its captions, at most ``count``."""
    drawn = [(_fitted(s.picture, size), s.caption) for s in _drawn(ingest, count, f"{seed}/reconstruction")]
    return Captioned(np.stack([picture for picture, _ in drawn]), tuple(caption for _, caption in drawn))


def _drawn(ingest: str, count: int, stream: str) -> Iterator[Sample]:
    manifest = store.read_manifest(ingest)
    shards = Shard.of(manifest)
    total = sum(shard.rows for shard in shards)
    chosen = sorted(random.Random(stream).sample(range(total), min(count, total)))
    start = 0
    for shard in shards:
        wanted = [index - start for index in chosen if start <= index < start + shard.rows]
        start += shard.rows
        if not wanted:
            continue
        reader = ShardReader(ingest, shard, manifest["encoding"])
        for position in wanted:
            yield reader.read(reader.keys[position])
