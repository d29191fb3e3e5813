"""The books of an ingest: every allowed row under one cause, counted from the shards' own tables.

A table is never changed. Rows that were fetched again stand in the table of a later shard, too, which then counts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from smooth import store
from smooth.data import causes, policy
from smooth.data.columns import CAPTION, URL

KEPT = "kept"
WORST_DOMAINS = 20
TRACKED_DOMAINS = 100_000  # of more, those with the fewest failures are dropped on the way


@dataclass
class Ledger:
    """What became of the allowed rows."""

    kept: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """by cause"""
    _domains: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All rows that are accounted for."""
        return self.kept + self.failed.total()

    def add(self, host: str, cause: str, count: int) -> None:
        """Count rows of one host and one cause, `KEPT` being the good one."""
        if cause == KEPT:
            self.kept += count
        else:
            self.failed[cause] += count
        self._domains.setdefault(host, Counter())[cause] += count
        if len(self._domains) > TRACKED_DOMAINS:
            self._domains = dict(self._worst(TRACKED_DOMAINS // 2))

    def worst_domains(self) -> list[dict[str, Any]]:
        """The domains that failed most: rows, failures by cause."""
        found = []
        for host, counts in self._worst(WORST_DOMAINS):
            failed = {cause: count for cause, count in sorted(counts.items()) if cause != KEPT}
            if failed:
                found.append({"domain": host, "rows": counts.total(), "failed": failed})
        return found

    def _worst(self, limit: int) -> list[tuple[str, Counter[str]]]:
        return sorted(self._domains.items(), key=lambda item: (item[1][KEPT] - item[1].total(), item[0]))[:limit]


def account(folder: str, shards: Sequence[dict[str, Any]], retries: Sequence[dict[str, Any]]) -> Ledger:
    """Count all rows of the shards; those that a later retry asked for again count there alone."""
    ledger = Ledger()
    for shard in shards:
        table = _current(folder, shard["name"], retries, ["url", "status", "error_message"])
        counted = table.group_by(["host", "cause"]).aggregate([([], "count_all")])
        for row in sorted(counted.to_pylist(), key=lambda row: (row["host"], row["cause"])):
            ledger.add(row["host"], row["cause"], row["count_all"])
    return ledger


def _current(folder: str, name: str, retries: Sequence[dict[str, Any]], columns: list[str] | None = None) -> pa.Table:
    """A shard's table with the columns ``cause`` and ``host``, without the rows that a retry asked for again."""
    path = store.join(folder, name.removesuffix(".tar") + ".parquet")
    fs, inner = store.filesystem(path)
    with fs.open(inner, "rb") as handle:
        table = pq.read_table(handle, columns=columns)
    table = table.append_column("cause", _causes(table)).append_column("host", policy.hosts(table["url"]))
    for retry in retries:
        if number_of(name) < retry["first_shard"]:
            table = table.filter(pc.invert(_among(table, retry["causes"])))
    return table


def number_of(name: str) -> int:
    """The number of a shard by its file's name."""
    return int(name.partition(".")[0])


def to_retry(folder: str, shards: Sequence[dict[str, Any]], retries: Sequence[dict[str, Any]]) -> Iterator[pa.Table]:
    """The rows whose cause is transient, shard by shard, with the list's own columns under LAION's names."""
    for shard in shards:
        table = _current(folder, shard["name"], retries)
        names = table.column_names
        wanted = table.filter(_among(table, causes.TRANSIENT))
        listed = names[: names.index("key")]  # img2dataset puts its own columns behind
        yield wanted.select(listed).rename_columns(
            [{"url": URL, "caption": CAPTION}.get(name, name) for name in listed]
        )


def digest(shards: Sequence[dict[str, Any]]) -> str:
    """What tells one state of the data from another: SHA-256 over name, sha256 and rows of its shards."""
    facts = [[shard["name"], shard["sha256"], shard["rows"]] for shard in shards]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def funnel(rows: int, refused: dict[str, int], failed: dict[str, int]) -> list[dict[str, Any]]:
    """From listed to kept: each step's name, the rows that are left after it and what it lost by rule or cause."""
    lost = {
        "listed": {},
        "allowed": refused,
        "fetched": {cause: n for cause, n in failed.items() if cause not in causes.IN_BODY | causes.IN_PICTURE},
        "decoded": {cause: n for cause, n in failed.items() if cause in causes.IN_BODY},
        KEPT: {cause: n for cause, n in failed.items() if cause in causes.IN_PICTURE},
    }
    steps = []
    for step, reasons in lost.items():
        rows -= sum(reasons.values())
        steps.append({"step": step, "rows": rows, "lost": dict(sorted(reasons.items()))})
    return steps


def _causes(table: pa.Table) -> pa.Array:
    """A cause for each row; messages repeat, so each is looked at once."""
    pair = pc.binary_join_element_wise(table["status"], pc.fill_null(table["error_message"], ""), "\n")
    encoded = pair.combine_chunks().dictionary_encode()
    found = []
    for text in encoded.dictionary.to_pylist():
        status, _, message = text.partition("\n")
        found.append(KEPT if status == "success" else causes.cause_of(message, status))
    return pa.array(found, pa.string()).take(encoded.indices)


def _among(table: pa.Table, wanted: Collection[str]) -> Any:
    return pc.is_in(table["cause"], value_set=pa.array(sorted(wanted), pa.string()))
