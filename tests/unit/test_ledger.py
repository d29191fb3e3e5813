"""The books of an ingest from tables made by hand; those of real shards are in tests/integration."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smooth.data import causes, ledger
from smooth.data.ledger import Ledger

CAUSES = ["http_404", "http_503", "timeout", "not_an_image", "too_small", "robots"]
MESSAGES = {"http_404": "HTTP Error 404: Not Found", "http_503": "HTTP Error 503: busy", "timeout": "timed out"}


def write_shard(folder: Path, number: int, outcomes: list[tuple[str, str]]) -> dict[str, str]:
    """A shard's table as img2dataset writes it, of rows (host, cause)."""
    table = {
        "hash": pa.array(range(len(outcomes)), pa.int64()),
        "caption": [f"row {row} of {number}" for row in range(len(outcomes))],
        "url": [f"http://{host}/{row}.jpg" for row, (host, _) in enumerate(outcomes)],
        "key": [f"{number}{row}" for row in range(len(outcomes))],
        "status": ["success" if cause == ledger.KEPT else "failed_to_download" for _, cause in outcomes],
        "error_message": pa.array(
            [None if cause == ledger.KEPT else MESSAGES.get(cause, cause) for _, cause in outcomes], pa.string()
        ),
    }
    pq.write_table(pa.table(table), folder / f"{number:05d}.parquet")
    return {"name": f"{number:05d}.tar"}


def test_every_row_is_counted_once_by_cause_and_domain(tmp_path: Path) -> None:
    outcomes = [("a.org", ledger.KEPT), ("a.org", "http_404"), ("b.org", "timeout"), ("b.org", "timeout")]
    shards = [write_shard(tmp_path, 0, outcomes), write_shard(tmp_path, 1, outcomes[:2])]
    found = ledger.account(str(tmp_path), shards, [])
    assert (found.rows, found.kept, found.failed) == (6, 2, {"http_404": 2, "timeout": 2})
    assert found.worst_domains() == [
        {"domain": "a.org", "rows": 4, "failed": {"http_404": 2}},
        {"domain": "b.org", "rows": 2, "failed": {"timeout": 2}},
    ]


def test_what_a_retry_asked_for_counts_in_its_own_shards_alone(tmp_path: Path) -> None:
    first = write_shard(tmp_path, 0, [("a.org", ledger.KEPT), ("a.org", "http_404"), ("a.org", "timeout")])
    second = write_shard(tmp_path, 1, [("a.org", "http_503"), ("a.org", "timeout")])
    (wanted,) = [table for table in ledger.to_retry(str(tmp_path), [first], []) if table.num_rows]
    assert wanted.to_pydict() == {"hash": [2], "TEXT": ["row 2 of 0"], "URL": ["http://a.org/2.jpg"]}
    retries = [{"first_shard": 1, "causes": ["http_503", "timeout"]}]
    found = ledger.account(str(tmp_path), [first, second], retries)
    assert found.failed == {"http_404": 1, "http_503": 1, "timeout": 1}
    again = pa.concat_tables(ledger.to_retry(str(tmp_path), [first, second], retries))
    assert again["TEXT"].to_pylist() == ["row 0 of 1", "row 1 of 1"]


def test_the_list_of_domains_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "TRACKED_DOMAINS", 50)
    found = Ledger()
    for number in range(1000):
        found.add(f"{number:04d}.org", "http_404", 100 if number == 500 else 1)
        found.add(f"{number:04d}.org", ledger.KEPT, 1)
    assert (found.kept, found.failed) == (1000, {"http_404": 1099})
    worst = found.worst_domains()
    assert len(worst) == ledger.WORST_DOMAINS
    assert worst[0] == {"domain": "0500.org", "rows": 101, "failed": {"http_404": 100}}


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(["min_size", "no_url"]), st.integers(1, 9)), st.lists(st.sampled_from(CAUSES)))
def test_the_funnel_adds_up(refused: dict[str, int], failures: list[str]) -> None:
    failed, kept = Counter(failures), 7
    steps = ledger.funnel(kept + sum(refused.values()) + failed.total(), refused, failed)
    assert [step["step"] for step in steps] == ["listed", "allowed", "fetched", "decoded", "kept"]
    for before, after in itertools.pairwise(steps):
        assert after["rows"] == before["rows"] - sum(after["lost"].values())
    assert steps[-1]["rows"] == kept
    assert sum((Counter(step["lost"]) for step in steps), Counter()) == failed + Counter(refused)


def test_the_digest_changes_with_each_of_its_parts_and_with_nothing_else() -> None:
    shard = {"name": "00000.tar", "sha256": "ab", "rows": 3, "bytes": 10}
    assert ledger.digest([shard]) == ledger.digest([shard | {"bytes": 11}])
    changed = [shard | {"name": "00001.tar"}, shard | {"sha256": "ac"}, shard | {"rows": 4}]
    assert len({ledger.digest([shard]), *(ledger.digest([other]) for other in changed)}) == 4


def test_only_what_may_pass_is_asked_for_again() -> None:
    assert {"timeout", "http_429", "http_503", "dns_busy"} <= causes.TRANSIENT
    assert not causes.TRANSIENT & (causes.IN_BODY | causes.IN_PICTURE | {"http_404", "dns", "robots", "tdm_reserved"})
