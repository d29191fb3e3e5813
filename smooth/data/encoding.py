"""One shard becomes one part: pictures decoded ahead in threads, encoded in batches, written as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from smooth.config import LatentsConfig
from smooth.data import parts, pictures, schema
from smooth.data.readahead import ahead
from smooth.data.shards import Sample, Shard, ShardReader

DECODE_THREADS = 4
NON_FINITE = "non_finite"
NO_TEXT = -1  # in the place of a text's row: its embedding is not finite

Tell = Callable[[int, int], None]  # (pictures of the shard done so far, failed among them)


class Networks(Protocol):
    """What turns pixels and captions into numbers; see :class:`smooth.data.encoder.Encoder`."""

    batch_size: int

    def moments(self, pixels: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float16]:
        """(N, height, width, 3) -> (N, 2C, H, W)."""

    def texts(self, captions: Sequence[str], /) -> dict[str, npt.NDArray[Any]]:
        """N captions -> ``text`` (N, L, D) or (N, L), and ``pooled`` (N, P) where there is one."""


@dataclass(frozen=True)
class Plan:
    """What all parts of a latents folder have in common."""

    source: str  # folder of the shards
    folder: str  # folder of the parts
    encoding: str  # extension of the pictures
    settings: LatentsConfig
    latent_shapes: tuple[tuple[int, ...], ...]  # of the settings' sizes
    text_shape: tuple[int, ...]
    pooled_width: int = 0  # 0: no pooled embedding


class Seen(NamedTuple):
    """A picture and what is to be encoded of it: nothing where there is a failure."""

    sample: Sample
    views: list[pictures.View]
    failure: str


class Row(NamedTuple):
    """An encoded view. Its pixels are gone."""

    sample: Sample
    crop: tuple[int, int, int, int]
    flipped: bool
    bucket: int
    moments: npt.NDArray[np.float16]  # (2C, H, W)


class _Bucket(NamedTuple):
    """What waits of one size."""

    views: list[tuple[Sample, pictures.View]]  # for the networks: less than a batch
    rows: list[Row]  # for the file: less than a row group


class PartEncoder:
    """Encodes shards, one after the other."""

    def __init__(self, plan: Plan, networks: Networks) -> None:
        self.plan = plan
        self.networks = networks
        self.depth = max(2 * networks.batch_size, DECODE_THREADS)

    def __call__(self, shard: Shard, part: str, tell: Tell) -> None:
        """Write the part of a shard. A picture that fails costs its own rows and is counted under its cause.

        Raises:
            ArtifactError: the shard is not what the manifest of ingest says.
            OSError: the storage is full or gone.
        """
        plan = self.plan
        reader = ShardReader(plan.source, shard, plan.encoding)
        rows_layouts = [schema.rows_schema(shape) for shape in plan.latent_shapes]
        texts_layout = schema.texts_schema(plan.text_shape, plan.pooled_width)
        with parts.writing(plan.folder, part, rows_layouts, texts_layout) as files:
            encoding = _Encoding(plan.settings, self.networks, files)
            with ThreadPoolExecutor(DECODE_THREADS) as threads:
                seen = ahead(threads, lambda key: see(reader.read(key), plan.settings), reader.keys, self.depth)
                for rows in encoding.groups(seen):
                    encoding.write(rows)
                    tell(files.pictures, files.failed.total())
        tell(files.pictures, files.failed.total())


class _Encoding:
    """What is known of a shard while it is encoded. Memory holds a row group of each size, however large the shard."""

    def __init__(self, settings: LatentsConfig, networks: Networks, files: parts.PartFiles) -> None:
        self.networks = networks
        self.files = files
        self.text_rows: dict[str, int] = {}
        self.texts_written = 0
        self.views_of_each = pictures.views_of_each(settings)

    def groups(self, seen: Iterable[Seen]) -> Iterator[list[Row]]:
        """Encoded rows of one size in the order of the pictures, as many as fill a row group with whole pictures."""
        size = max(1, parts.ROW_GROUP // self.views_of_each) * self.views_of_each
        buckets = [_Bucket([], []) for _ in self.files.rows]
        for sample, view in self._views(seen):
            bucket = buckets[view.bucket]
            bucket.views.append((sample, view))
            if len(bucket.views) == self.networks.batch_size:
                self._encode(bucket)
            while len(bucket.rows) >= size:
                yield bucket.rows[:size]
                del bucket.rows[:size]
        for bucket in buckets:
            if bucket.views:
                self._encode(bucket)
            for first in range(0, len(bucket.rows), size):
                yield bucket.rows[first : first + size]

    def _encode(self, bucket: _Bucket) -> None:
        moments = self.networks.moments(np.stack([view.pixels for _, view in bucket.views]))
        for (sample, view), row in zip(bucket.views, moments, strict=True):
            bucket.rows.append(Row(sample, view.crop, view.flipped, view.bucket, row))
        bucket.views.clear()

    def _views(self, seen: Iterable[Seen]) -> Iterator[tuple[Sample, pictures.View]]:
        for sample, views, failure in seen:
            self.files.pictures += 1
            if failure:
                self.files.failed[failure] += 1
            yield from ((sample, view) for view in views)

    def write(self, rows: list[Row]) -> None:
        """Write rows of whole pictures of one size, and the texts of captions that no row had before."""
        each = self.views_of_each
        groups = [rows[first : first + each] for first in range(0, len(rows), each)]
        finite = [views for views in groups if self._count(all(np.isfinite(row.moments).all() for row in views))]
        self._write_texts([views[0].sample.caption for views in finite])
        whole = [views for views in finite if self._count(self.text_rows[views[0].sample.caption] != NO_TEXT)]
        self._write_rows([row for views in whole for row in views])

    def _count(self, finite: bool) -> bool:
        if not finite:
            self.files.failed[NON_FINITE] += 1
        return finite

    def _write_texts(self, captions: list[str]) -> None:
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.text_rows]
        if not new:
            return
        texts = self.networks.texts(new)
        finite = np.all([np.isfinite(values).reshape(len(new), -1).all(axis=1) for values in texts.values()], axis=0)
        numbers = np.cumsum(finite) - 1 + self.texts_written
        for caption, good, number in zip(new, finite, numbers, strict=True):
            self.text_rows[caption] = int(number) if good else NO_TEXT
        self.texts_written += int(finite.sum())
        kept = [caption for caption, good in zip(new, finite, strict=True) if good]
        columns = {"caption": kept, **{name: values[finite] for name, values in texts.items()}}
        self.files.add(self.files.texts, columns)

    def _write_rows(self, rows: list[Row]) -> None:
        if rows:
            self.files.add(
                self.files.rows[rows[0].bucket],
                {
                    "key": [row.sample.key for row in rows],
                    "caption": [row.sample.caption for row in rows],
                    "moments": np.stack([row.moments for row in rows]),
                    "text_row": [self.text_rows[row.sample.caption] for row in rows],
                    "crop": np.array([row.crop for row in rows], np.int32),
                    "flipped": [row.flipped for row in rows],
                    "original_size": np.array([row.sample.original_size for row in rows], np.int32),
                },
            )


def see(sample: Sample, settings: LatentsConfig) -> Seen:
    """Decode a sample's picture; its bytes are let go."""
    empty = replace(sample, picture=b"")
    if sample.failure:
        return Seen(empty, [], sample.failure)
    try:
        return Seen(empty, pictures.views(sample.picture, sample.key, sample.original_size, settings), "")
    except pictures.PictureError:
        return Seen(empty, [], pictures.UNDECODABLE)
