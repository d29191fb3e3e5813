"""Duplicates against a plain loop over the rows: the first listed row wins, the funnel adds up."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smooth.config import IngestConfig
from smooth.data import selection
from smooth.data.duplicates import Duplicates

URLS = [None, "", "http://a.org/1", "http://a.org/2", "http://a.org/2 ", "http://b.org/ü", "http://c.org/\0", "x" * 300]
HASHES = {pa.int64(): [None, 0, -1, 2**63 - 1, -(2**63)], pa.string(): [None, "", "0f", "0F", "猫"]}


def by_hand(rows: list[dict[str, Any]], limit: int | None) -> tuple[list[int], Counter[str]]:
    """Numbers of the rows that are allowed, and how many each rule refuses."""
    refused: Counter[str] = Counter()
    firsts: list[dict[str, Any]] = []
    for number, row in enumerate(rows[:limit]):
        if not (row["URL"] or "").strip():
            refused["no_url"] += 1
        elif row["punsafe"] > 0.5:
            refused["max_punsafe"] += 1
        elif row["URL"] in {first["URL"] for first in firsts}:
            refused["duplicate_url"] += 1
        else:
            firsts.append(row | {"number": number})
    allowed: list[dict[str, Any]] = []
    for row in firsts:
        if row["hash"] is not None and row["hash"] in {kept["hash"] for kept in allowed}:
            refused["duplicate_hash"] += 1
        else:
            allowed.append(row)
    return [row["number"] for row in allowed], refused


@pytest.mark.parametrize("kind", HASHES, ids=str)
@settings(max_examples=30)
@given(data=st.data())
def test_the_selection_is_that_of_a_plain_loop(kind: pa.DataType, data: st.DataObject) -> None:
    row = st.fixed_dictionaries(
        {"URL": st.sampled_from(URLS), "hash": st.sampled_from(HASHES[kind]), "punsafe": st.sampled_from([0.1, 0.9])}
    )
    rows = data.draw(st.lists(row, max_size=40))
    limit = data.draw(st.none() | st.integers(1, 40))
    shard_size = data.draw(st.integers(1, 9))
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "BATCH", 7)
        patch.setattr(selection, "PART_ROWS", 10)
        listed, target = Path(scratch, "list.parquet"), Path(scratch, "allowed")
        captions = [str(number) for number in range(len(rows))]
        schema = pa.schema({"URL": pa.string(), "hash": kind, "punsafe": pa.float64()})
        pq.write_table(
            pa.Table.from_pylist(rows, schema).append_column("TEXT", pa.array(captions, pa.string())), listed
        )
        config = IngestConfig(url_list=str(listed), max_punsafe=0.5, limit=limit, shard_size=shard_size)
        found = selection.select(str(listed), config, str(target))
        parts = [pq.read_table(path) for path in sorted(target.glob("part-*.parquet"))]
    numbers, refused = by_hand(rows, limit)
    assert [int(text) for part in parts for text in part["TEXT"].to_pylist()] == numbers
    assert found == (len(rows[:limit]), len(numbers), refused)
    assert found.rows == found.allowed + found.refused.total()
    assert all(part.num_rows % shard_size == 0 for part in parts[:-1])


def test_duplicates_may_be_kept(tmp_path: Path) -> None:
    listed = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://a.org"] * 3, "text": ["a"] * 3, "hash": [1, 1, 2]}), listed)
    free = IngestConfig(url_list=str(listed), duplicate_url="keep")
    assert selection.select(str(listed), free).refused == {"duplicate_hash": 1}
    assert selection.select(str(listed), free.model_copy(update={"duplicate_hash": "keep"})).refused == {}


def test_many_rows_leave_one_of_each_value(tmp_path: Path) -> None:
    with Duplicates(tmp_path, {"duplicate_url": "URL"}) as duplicates:
        for _ in range(3):
            duplicates.add(pa.table({"URL": [f"http://a.org/{number}" for number in range(5000)]}))
        duplicate, refused = duplicates.resolve()
    assert refused == {"duplicate_url": 10_000}
    assert not duplicate[:5000].any()
    assert duplicate[5000:].all()
