"""From a URL list to the rows that may be fetched: the list streams through the policy, no packet is sent.

Memory does not grow with the list: batches of one file at a time, duplicates by :mod:`smooth.data.duplicates`. The
rows that pass wait on local disk until the last row has been seen.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.ipc
import pyarrow.parquet as pq

from smooth import store
from smooth.config import ConfigError, IngestConfig
from smooth.data import policy, web
from smooth.data.columns import URL, recognise
from smooth.data.duplicates import Duplicates

BATCH = 65_536  # rows
READ_BUFFER = 1 << 20  # bytes of a column that are read at once: Arrow would take a whole row group
PART_ROWS = 100_000  # about so many in each file of allowed rows, which img2dataset reads as a whole


class Selection(NamedTuple):
    """What the policy made of a list; ``rows == allowed + refused.total()``."""

    rows: int
    allowed: int
    refused: Counter[str]
    """by rule"""


def dry_run(config: IngestConfig, folder: str) -> Selection:
    """What ingest would fetch and refuse; the built-in web's list is planned, not served."""
    path = config.url_list
    if config.demo_web is not None:
        path = store.join(folder, "dry-run.parquet")
        web.Web(f"http://{web.NAME}", config.demo_web).write_list(path)
    if path is None:
        raise ConfigError("ingest has no source: set ingest.url_list or ingest.demo_web")
    return select(path, config)


def select(url_list: str, config: IngestConfig, target: str | None = None) -> Selection:
    """Stream a list through the policy; write the allowed rows, under LAION's names, into the folder ``target``.

    The folder's files hold whole shards each, so that shard n is rows n x shard_size and on. Without a target the
    rows are only counted.

    Raises:
        ValueError: the list is unreadable or lacks a column that is needed.
        ConfigError: a file of blocked values is not there.
    """
    listed = _open(url_list)
    columns = recognise(listed.schema.names, config.columns)
    rules = policy.rules(config)
    policy.check_columns(list(columns), rules)
    schema = pa.schema([listed.schema.field(column).with_name(name) for name, column in columns.items()])
    refused: Counter[str] = Counter()
    rows = 0
    with tempfile.TemporaryDirectory(prefix="smooth-select-") as scratch, ExitStack() as opened:
        duplicates = opened.enter_context(Duplicates(Path(scratch), _unique(config, list(columns))))
        waiting = Path(scratch, "waiting")
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        writer = opened.enter_context(pa.ipc.new_stream(str(waiting), schema, options=options))
        for table in _first_rows(_tables(listed, columns, schema), config.limit):
            rows += table.num_rows
            passed, counts = policy.apply(table, rules)
            refused += counts
            duplicates.add(passed)
            if target is not None:
                writer.write_table(passed)
        writer.close()
        duplicate, counts = duplicates.resolve()
        refused += counts
        if target is not None:
            write_parts(_unrefused(waiting, duplicate), target, schema, config.shard_size)
    return Selection(rows, rows - refused.total(), refused)


def _open(url_list: str) -> pads.Dataset:
    fs, inner = store.filesystem(url_list)
    try:
        return pads.dataset(inner, filesystem=fs, format="parquet")
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise ValueError(f"ingest.url_list={url_list} is not a readable Parquet list: {error}") from error


def _unique(config: IngestConfig, columns: list[str]) -> dict[str, str]:
    """The rules on duplicates that the config leaves on and the list has a column for."""
    found = {"duplicate_url": URL, "duplicate_hash": "hash"}
    return {name: column for name, column in found.items() if getattr(config, name) == "refuse" and column in columns}


def _tables(listed: pads.Dataset, columns: dict[str, str], schema: pa.Schema) -> Iterator[pa.Table]:
    """The list's rows in its order, under LAION's names; files of other types are brought to the first one's."""
    for path in listed.files:
        with pq.ParquetFile(path, filesystem=listed.filesystem, buffer_size=READ_BUFFER, pre_buffer=False) as file:
            if lacking := [column for column in columns.values() if column not in file.schema_arrow.names]:
                raise ValueError(f"{path} lacks {', '.join(lacking)}, which other files of ingest.url_list have")
            # One thread: more would hold more batches at once, and downloads are the slow part anyway.
            for batch in file.iter_batches(BATCH, columns=list(columns.values()), use_threads=False):
                table = pa.Table.from_batches([batch]).select(list(columns.values())).rename_columns(list(columns))
                yield table.cast(schema)


def _first_rows(tables: Iterator[pa.Table], limit: int | None) -> Iterator[pa.Table]:
    """The stream's tables, cut after ``limit`` rows."""
    left = limit
    for table in tables:
        if left is not None:
            table = table.slice(0, left)
            left -= table.num_rows
        yield table
        if left == 0:
            return


def shards_of_part(shard_size: int) -> int:
    """How many shards a file of allowed rows holds."""
    return max(1, PART_ROWS // shard_size)


def part_path(target: str, number: int) -> str:
    """A file of allowed rows in the folder ``target``."""
    return store.join(target, f"part-{number:05d}.parquet")


def write_parts(tables: Iterator[pa.Table], target: str, schema: pa.Schema, shard_size: int) -> None:
    """Write rows into files of whole shards in the folder ``target``; what is in it is replaced."""
    fs, folder = store.filesystem(target)
    if fs.exists(folder):
        fs.rm(folder, recursive=True)
    with store.told_when_full(target):
        fs.makedirs(folder)
    for number, part in enumerate(_parts(tables, shard_size * shards_of_part(shard_size))):
        # URLs and captions hardly repeat: a dictionary costs three times the time and saves nothing.
        path = part_path(folder, number)
        with (
            store.told_when_full(path),
            pq.ParquetWriter(path, schema, filesystem=fs, use_dictionary=False, write_statistics=False) as writer,
        ):
            for table in part:
                writer.write_table(table)


def _unrefused(waiting: Path, duplicate: npt.NDArray[np.bool_]) -> Iterator[pa.Table]:
    """The waiting rows that are no duplicates."""
    start = 0
    with pa.OSFile(str(waiting)) as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            refused = np.asarray(duplicate[start : start + batch.num_rows])
            start += batch.num_rows
            table = pa.Table.from_batches([batch]).filter(pa.array(~refused))
            if table.num_rows:
                yield table


def _parts(tables: Iterator[pa.Table], rows: int) -> Iterator[Iterator[pa.Table]]:
    """The stream cut into streams of ``rows`` rows each; one must be used up before the next is taken."""
    rest: list[pa.Table] = []

    def part() -> Iterator[pa.Table]:
        left = rows
        while left and (table := rest.pop() if rest else next(tables, None)) is not None:
            if table.num_rows > left:
                rest.append(table.slice(left))
                table = table.slice(0, left)
            left -= table.num_rows
            yield table

    while rest or (first := next(tables, None)) is not None:
        if not rest:
            rest.append(first)
        yield part()
