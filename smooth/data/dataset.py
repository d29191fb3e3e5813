"""A finished latents folder as rows at random access, with recently read row groups kept in memory."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors
from torch import Tensor

from smooth import store
from smooth.config import Size
from smooth.data import parts, schema

# Rows shuffled together, see :class:`smooth.data.order.Order`: as many as stay below both. A rank keeps the window
# that it is in and the next one. SD 1.5 has 180 KiB a row (moments 64, text 116): windows of 1536 rows, 0.6 GB a rank.
# Several sizes of latents share this, but each has windows of its own, of at least a row group, and as much ahead.
WINDOW_ROWS = 4096
WINDOW_BYTES = 256 << 20
READERS = 2  # threads
NETWORKS = ("vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class _Table:
    """A Parquet file as the manifest describes it: row groups of ``group_rows``, the last one shorter."""

    path: str
    rows: int
    group_rows: int

    @property
    def firsts(self) -> range:
        """First row of each row group."""
        return range(0, self.rows, self.group_rows)


class _Part(NamedTuple):
    """A part's rows of one size, and the texts that they point to."""

    rows: _Table
    texts: _Table
    size: Size


class Row(NamedTuple):
    """A row as it is stored. What a model is not told has no width."""

    moments: NDArray[np.float16]  # (2C, H, W), mean before log-variance
    text: NDArray[Any]  # (L, D) float16 or (L,) int32
    pooled: NDArray[np.float16]  # (P,)
    time_ids: NDArray[np.float32]  # (6,) or (0,): see `_time_ids`


@dataclass(frozen=True)
class _Rows:
    """What a row group holds, each of its distinct texts once."""

    moments: NDArray[np.float16]  # (N, 2C, H, W)
    texts: NDArray[Any]  # (M, L, D) float16 or (M, L) int32
    pooled: NDArray[np.float16]  # (M, P)
    text_of: NDArray[np.int64]  # (N,) place in texts
    time_ids: NDArray[np.float32]  # (N, 6) or (N, 0)


class LatentsDataset:
    """Random access to the rows of a finished latents folder, numbered one size of latents after the other.

    The manifest alone tells which row lies where, so a million rows open as quickly as a thousand.
    """

    def __init__(self, folder: str) -> None:
        """Open the folder's manifest. Its parts are opened, and compared with it, where a row of them is read.

        Raises:
            ArtifactError: the folder isn't finished, or its manifest contradicts itself.
        """
        manifest = store.read_manifest(folder)
        self.ingested: str = manifest["ingest"]
        # Digests of the networks that encoded it, see :func:`smooth.data.encoder.network_hashes`.
        self.networks: dict[str, str] = {name: manifest[name] for name in NETWORKS if name in manifest}
        self.latent_shapes: list[tuple[int, int, int]] = [tuple(shape) for shape in manifest["latent_shapes"]]
        self.text_shape: tuple[int, ...] = tuple(manifest["text_shape"])
        self.pooled_width = int(manifest.get("pooled_width", 0))
        self.scaling_factor = float(manifest["scaling_factor"])
        self._parts = [
            _Part(
                _Table(store.join(folder, rows["name"]), rows["rows"], parts.ROW_GROUP),
                _Table(store.join(folder, texts["name"]), texts["rows"], parts.TEXT_GROUP),
                tuple(size),
            )
            for number, size in enumerate(manifest["sizes"])
            for rows, texts in ((file["latents"][number], file["texts"]) for file in manifest["files"])
        ]
        self._first_groups = np.cumsum([0, *(len(part.rows.firsts) for part in self._parts)])  # first of each
        self.starts = _starts([part.rows for part in self._parts])  # first row of each group, then the number of rows
        if len(self) != manifest["rows"] or not len(self):
            raise store.ArtifactError(
                f"{folder}: the manifest says {manifest['rows']} rows, its parts have {len(self)}; "
                "run `smooth latents repair`, or delete the folder and run the latents stage again"
            )
        no_text = load_safetensors(store.read_bytes(store.join(folder, schema.NULL_TEXT)))
        null_text = no_text["text"].reshape(self.text_shape)
        self.null_text = null_text.long() if self.holds_token_ids else null_text.float()
        self.null_pooled = no_text["pooled"].float() if self.pooled_width else torch.empty(0)
        self.window_rows = max(1, min(WINDOW_ROWS, WINDOW_BYTES // self._row_bytes()) // len(self.latent_shapes))
        self._caches: list[OrderedDict[int, Future[_Rows]]] = [OrderedDict() for _ in self.latent_shapes]
        self._lock = Lock()
        self._readers = ThreadPoolExecutor(READERS, "latents")

    @property
    def holds_token_ids(self) -> bool:
        """Whether texts are token ids (L,), still to be encoded, instead of embeddings (L, D)."""
        return len(self.text_shape) == 1

    @cached_property
    def groups_of_sizes(self) -> list[slice]:
        """The row groups of each size of latents."""
        parts_of_each = len(self._parts) // len(self.latent_shapes)
        ends = self._first_groups[::parts_of_each]
        return [slice(int(first), int(last)) for first, last in itertools.pairwise(ends)]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, number: int) -> Row:
        """A row as it is stored.

        Raises:
            ArtifactError: the row's part is not what the manifest says.
        """
        group = int(np.searchsorted(self.starts, number, side="right")) - 1
        rows = self._future(group).result()
        place = number - int(self.starts[group])
        text = rows.text_of[place]
        return Row(rows.moments[place], rows.texts[text], rows.pooled[text], rows.time_ids[place])

    def added(self, row: Row, *, without_text: bool) -> dict[str, Tensor]:
        """What the UNet is told besides the text, float32 by diffusers' names; nothing where it wants nothing."""
        if not self.pooled_width:
            return {}
        pooled = self.null_pooled if without_text else torch.from_numpy(row.pooled).float()
        return {"text_embeds": pooled, "time_ids": torch.from_numpy(row.time_ids)}

    def read_ahead(self, groups: Iterable[int]) -> None:
        """Begin to read row groups in the background. The last two windows' worth of each size is kept."""
        for group in groups:
            self._future(group)

    def close(self) -> None:
        """End the threads that read, and what they have not begun. No row can be read any more."""
        self._readers.shutdown(cancel_futures=True)

    def _future(self, group: int) -> Future[_Rows]:
        ends = [size.stop for size in self.groups_of_sizes]
        cache = self._caches[bisect_right(ends, group)]  # a common size must not drive out what a rare one waits for
        with self._lock:
            if group in cache:
                cache.move_to_end(group)
                return cache[group]
            future = cache[group] = self._readers.submit(self._read, group)
            # A window ends with the group that fills it, and may have almost a group more.
            while sum(map(self._rows_of, cache)) > 2 * (self.window_rows + parts.ROW_GROUP):
                cache.popitem(last=False)
            return future

    def _rows_of(self, group: int) -> int:
        return int(self.starts[group + 1] - self.starts[group])

    def _row_bytes(self) -> int:
        """What a row takes where no two share a text."""
        text = math.prod(self.text_shape) * (4 if self.holds_token_ids else 2)
        return 2 * max(math.prod(shape) for shape in self.latent_shapes) * 2 + text + 2 * self.pooled_width

    def _read(self, group: int) -> _Rows:
        number = int(np.searchsorted(self._first_groups, group, side="right")) - 1
        part = self._parts[number]
        told_sizes = ["crop", "flipped", "original_size"] if self.pooled_width else []
        rows = _read_groups(part.rows, [group - int(self._first_groups[number])], ["moments", "text_row", *told_sizes])
        wanted, text_of = np.unique(rows["text_row"].to_numpy(), return_inverse=True)
        columns = ["text", "pooled"] if self.pooled_width else ["text"]
        texts = _read_texts(part.texts, wanted, columns)
        return _Rows(
            moments=schema.tensor(rows, "moments"),
            texts=texts["text"],
            pooled=texts.get("pooled", np.empty((len(wanted), 0), np.float16)),
            text_of=text_of,
            time_ids=_time_ids(rows, part.size) if told_sizes else np.empty((len(text_of), 0), np.float32),
        )


def _starts(tables: list[_Table]) -> NDArray[np.int64]:
    """First row of each row group of all tables, then the number of rows."""
    firsts = np.cumsum([0, *(table.rows for table in tables)])
    groups = [first + np.array(table.firsts) for first, table in zip(firsts[:-1], tables, strict=True)]
    return np.concatenate([*groups, firsts[-1:]]).astype(np.int64)


@contextmanager
def _opened(table: _Table) -> Iterator[pq.ParquetFile]:
    """The file, when its footer agrees with the manifest.

    Raises:
        ArtifactError: it doesn't, or there is no such Parquet file.
    """
    fs, inner = store.filesystem(table.path)
    try:
        with fs.open(inner, "rb") as handle, pq.ParquetFile(handle) as file:
            footer = file.metadata
            sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
            if sizes != [min(table.group_rows, table.rows - first) for first in table.firsts]:
                found = f"{footer.num_rows} rows in {footer.num_row_groups} row groups"
                raise _damaged(table, f"it has {found}, by the manifest {table.rows} in {len(table.firsts)}")
            yield file
    except FileNotFoundError as error:
        raise _damaged(table, "it is missing") from error
    except pa.ArrowInvalid as error:
        raise _damaged(table, str(error)) from error


def _damaged(table: _Table, what: str) -> store.ArtifactError:
    return store.ArtifactError(
        f"{table.path}: {what}. Run `smooth latents repair`, or delete the folder and run the latents stage again"
    )


def _read_groups(table: _Table, groups: list[int], columns: list[str]) -> pa.Table:
    with _opened(table) as file:
        return file.read_row_groups(groups, columns, use_threads=False)  # the step has the other cores


def _read_texts(table: _Table, wanted: NDArray[np.int32], columns: list[str]) -> dict[str, NDArray[Any]]:
    """Columns of the wanted rows (sorted) of a part's texts, by the small row groups that hold them."""
    groups = np.unique(wanted // table.group_rows)
    texts = _read_groups(table, groups.tolist(), columns)
    numbers = np.concatenate([np.arange(first, first + table.group_rows) for first in groups * table.group_rows])
    places = np.searchsorted(numbers, wanted)
    return {name: schema.tensor(texts, name)[places] for name in columns}


def _time_ids(rows: pa.Table, size: Size) -> NDArray[np.float32]:
    """What XL is told of sizes: original height and width, top and left of the crop, target height and width, (N, 6).

    The crop counts in pixels of the picture scaled so that the crop has ``size``, height and width, as in the model's
    training.
    """
    original, crop = (schema.tensor(rows, name).astype(np.float32) for name in ("original_size", "crop"))
    flipped = rows["flipped"].to_numpy()
    top, left, height, width = crop.T
    left = np.where(flipped, original[:, 1] - width - left, left)
    target = np.broadcast_to(np.array(size, np.float32)[:, None], (2, len(crop)))
    return np.stack([*original.T, top * size[0] / height, left * size[1] / width, *target], axis=1)
