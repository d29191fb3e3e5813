"""Selecting rows of a list, and the dry run that says so without a packet."""

from __future__ import annotations

import re
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from smooth.cli import app
from smooth.config import DemoWebConfig, IngestConfig
from smooth.data import web
from smooth.data.selection import select


@pytest.mark.parametrize(("limit", "expected"), [(None, 10), (1, 1), (4, 4), (7, 7), (50, 10)])
def test_limit_takes_the_first_rows(limit: int | None, expected: int, tmp_path: Path) -> None:
    listed = tmp_path / "list.parquet"
    table = pa.table({"url": [f"http://example.org/{number}" for number in range(10)], "caption": ["a"] * 10})
    pq.write_table(table, listed, row_group_size=4)
    target = str(tmp_path / "allowed")
    assert select(str(listed), IngestConfig(url_list=str(listed), limit=limit), target).rows == expected
    assert pq.read_table(target)["URL"].to_pylist() == table["url"].to_pylist()[:expected]


def test_a_folder_of_files_is_one_list(tmp_path: Path) -> None:
    for number in range(3):
        part = pa.table({"url": [f"http://example.org/{number}"], "caption": ["a" if number else ""]})
        pq.write_table(part, tmp_path / f"part-{number}.parquet")
    found = select(str(tmp_path), IngestConfig(url_list=str(tmp_path)))
    assert found == (3, 2, Counter({"no_caption": 1}))


def test_a_file_that_is_no_list_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    path.write_text("url,caption")
    with pytest.raises(ValueError, match=r"ingest\.url_list=.*list\.parquet is not a readable Parquet list"):
        select(str(path), IngestConfig(url_list=str(path)))


def test_a_dry_run_counts_by_rule_and_opens_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: Any) -> None:
        raise AssertionError("a dry run opens a socket")

    monkeypatch.setattr(socket, "socket", no_socket)
    result = CliRunner().invoke(app, ["ingest", "--dry-run", "-o", "ingest.demo_web.pictures=100"])
    assert result.exit_code == 0, result.output
    planted = Counter(row.fault for row in web.plan(DemoWebConfig(pictures=100)))
    counts = {name: int(count) for count, name in re.findall(r"([\d,]+) (.+)", result.output)}
    assert counts.pop("rows listed") == planted.total()
    refused = {name.removeprefix("refused by ingest."): count for name, count in counts.items() if "refused" in name}
    assert refused == {fault: planted[fault] for fault in refused}
    assert counts["would be fetched"] == planted.total() - sum(refused.values())
