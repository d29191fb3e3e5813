"""From a URL list to the rows that may be fetched: the list streams through the policy, no packet is sent."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from smooth import store
from smooth.config import ConfigError, IngestConfig
from smooth.data import policy, web
from smooth.data.columns import recognise

# Arrow's own defaults read a list far ahead of its reader, and keep what they read.
STREAMED = {
    "batch_readahead": 2,
    "fragment_readahead": 1,
    "fragment_scan_options": pads.ParquetFragmentScanOptions(pre_buffer=False),
}


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
        web.Web("http://127.0.0.1", config.demo_web).write_list(path)
    if path is None:
        raise ConfigError("ingest has no source: set ingest.url_list or ingest.demo_web")
    return select(path, config)


def select(url_list: str, config: IngestConfig, target: str | None = None) -> Selection:
    """Stream a list through the policy; write the allowed rows, under LAION's names, to ``target`` if it is given.

    Raises:
        ValueError: the list is unreadable or lacks a column that is needed.
        ConfigError: a file of blocked values is not there.
    """
    fs, inner = store.filesystem(url_list)
    try:
        listed = pads.dataset(inner, filesystem=fs, format="parquet")
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise ValueError(f"ingest.url_list={url_list} is not a readable Parquet list: {error}") from error
    columns = recognise(listed.schema.names, config.columns)
    rules = policy.rules(config)
    policy.check_columns(list(columns), rules)
    schema = pa.schema([listed.schema.field(column).with_name(name) for name, column in columns.items()])
    refused: Counter[str] = Counter()
    rows = allowed = 0
    with nullcontext() if target is None else _writer(target, schema) as writer:
        batches = listed.to_batches(columns=list(columns.values()), **STREAMED)
        for table in _first_rows(batches, config.limit):
            rows += table.num_rows
            passed, counts = policy.apply(table.rename_columns(list(columns)), rules)
            refused += counts
            allowed += passed.num_rows
            if writer is not None:
                writer.write_table(passed)
    return Selection(rows, allowed, refused)


def _writer(target: str, schema: pa.Schema) -> pq.ParquetWriter:
    fs, path = store.filesystem(target)
    fs.makedirs(posixpath.dirname(path), exist_ok=True)
    return pq.ParquetWriter(path, schema, filesystem=fs)


def _first_rows(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.Table]:
    """The stream's batches as tables, cut after ``limit`` rows."""
    left = limit
    for batch in batches:
        if left is not None:
            batch = batch.slice(0, left)
            left -= batch.num_rows
        yield pa.Table.from_batches([batch])
        if left == 0:
            return
