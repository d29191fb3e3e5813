"""Real pictures of a run's own data: references of distances, and what is inverted and painted again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ImageOps
from PIL.Image import Resampling

from smooth import store
from smooth.config import ConfigError
from smooth.data import pictures
from smooth.data.shards import Shard, ShardReader

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Captioned:
    """Pictures with their captions."""

    pictures: npt.NDArray[np.uint8]
    """(R, size, size, 3)"""
    captions: tuple[str, ...]


def reference_pictures(ingest: str, count: int, size: int, seed: int, batch: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Batches (B, size, size, 3) uint8 of a random subset of the ingested pictures, at most ``count`` in all."""
    drawn = (picture for picture, _ in _drawn(ingest, count, size, f"{seed}/reference"))
    while waiting := list(itertools.islice(drawn, batch)):
        yield np.stack(waiting)


def folder_pictures(folder: str, count: int, size: int, seed: int, batch: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Likewise of the pictures below a folder, on any fsspec path.

    Raises:
        ConfigError: there are fewer than two, or one can't be decoded.
    """
    fs, inner = store.filesystem(folder)
    files = sorted(path for path in fs.find(inner) if path.lower().endswith(SUFFIXES))
    if len(files) < 2:
        raise ConfigError(
            f"evaluate.reference={folder} holds {len(files)} pictures ({', '.join(SUFFIXES)}); give a folder of more"
        )
    chosen = sorted(random.Random(f"{seed}/reference").sample(files, min(count, len(files))))
    drawn = (_opened(path, fs.cat_file(path), size) for path in chosen)
    while waiting := list(itertools.islice(drawn, batch)):
        yield np.stack(waiting)


def _opened(path: str, data: bytes, size: int) -> npt.NDArray[np.uint8]:
    try:
        return _fitted(data, size)
    except pictures.PictureError as error:
        raise ConfigError(f"evaluate.reference: {path} is no picture that can be read: {error}; remove it") from error


def _fitted(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    return np.asarray(ImageOps.fit(pictures.decode(data), (size, size), Resampling.LANCZOS))


def captioned_pictures(ingest: str, count: int, size: int, seed: int) -> Captioned:
    """Another such subset with its captions, at most ``count``."""
    drawn = list(_drawn(ingest, count, size, f"{seed}/reconstruction"))
    return Captioned(np.stack([picture for picture, _ in drawn]), tuple(caption for _, caption in drawn))


def _drawn(ingest: str, count: int, size: int, stream: str) -> Iterator[tuple[npt.NDArray[np.uint8], str]]:
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
            sample = reader.read(reader.keys[position])
            yield _fitted(sample.picture, size), sample.caption
