"""``smooth ingest retry``: what failed for a cause that may pass is asked for once more, long after."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from smooth import store
from smooth.config import RunConfig
from smooth.data import causes, ingest, ledger
from smooth.data.funnel import draw_funnel
from smooth.data.selection import write_parts

ROWS = "retry"  # folder of the rows that are asked for again, while they are
SHARD_FILE = re.compile(r"(\d+)(\.tar|\.parquet|_stats\.json)")


class Retried(NamedTuple):
    """What a retry asked for and got."""

    asked: int
    won: int
    manifest: dict[str, Any]


def retry(config: RunConfig) -> Retried:
    """Fetch the rows of a finished ingest whose cause is in `causes.TRANSIENT`; append what arrives as further shards.

    The manifest is replaced once all is there, and only if a picture was won: until then, and after a failure, the
    artifact is what it was.

    Raises:
        ArtifactError: the ingest is not finished.
        IngestError: shards failed.
    """
    folder = config.stage_dir("ingest")
    manifest = store.read_manifest(folder)
    shards, retries = manifest["shards"], manifest["retries"]
    first = 1 + max(ledger.number_of(shard["name"]) for shard in shards)
    _remove_shards(folder, first)  # of a retry that was cut off
    rows = store.join(folder, ROWS)
    tables = ledger.to_retry(folder, shards, retries)
    asked = _write(tables, rows, config.ingest.shard_size)
    added: list[dict[str, Any]] = []
    if asked:
        with ingest.served(config.ingest) as (_, fetch_policy):
            added = ingest.fetch_rows(config, fetch_policy, rows, first, asked)
    ingest.remove(rows)
    won = sum(shard["rows"] for shard in added)
    if not won:
        _remove_shards(folder, first)
        return Retried(asked, 0, manifest)
    entry = {"first_shard": first, "causes": sorted(causes.TRANSIENT), "asked": asked, "won": won}
    updated = ingest.books(config, manifest["rows"], manifest["refused"], [*shards, *added], [*retries, entry])
    draw_funnel(store.join(folder, ingest.FUNNEL), updated["funnel"])
    return Retried(asked, won, store.write_manifest(folder, updated | {"seconds": manifest["seconds"]}))


def _write(tables: Iterator[pa.Table], target: str, shard_size: int) -> int:
    """Write the rows as ingest's own lists of allowed rows are; return how many they are."""
    asked = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal asked
        for table in itertools.chain([head], tables):
            asked += table.num_rows
            if table.num_rows:
                yield table

    head = next(tables)
    write_parts(counted(), target, head.schema, shard_size)
    return asked


def _remove_shards(folder: str, first: int) -> None:
    """Delete the files of the shards from number ``first`` on."""
    fs, inner = store.filesystem(folder)
    for path in fs.ls(inner, detail=False):
        match = SHARD_FILE.fullmatch(posixpath.basename(path))
        if match and int(match[1]) >= first:
            fs.rm(path)
