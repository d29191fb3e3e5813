from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smooth.config import ConfigError, IngestConfig
from smooth.data import policy

STRICT = IngestConfig(
    url_list="list.parquet",
    min_size=64,
    min_aesthetic=4.5,
    max_punsafe=0.5,
    max_pwatermark=0.8,
    min_similarity=0.2,
)
GOOD: dict[str, Any] = {
    "URL": "http://example.org/a.jpg",
    "TEXT": "a cat",
    "WIDTH": 64,
    "HEIGHT": 64,
    "similarity": 0.2,
    "punsafe": 0.5,
    "pwatermark": 0.8,
    "AESTHETIC_SCORE": 4.5,
    "hash": 1,
}
TYPES = pa.schema(
    {
        "URL": pa.string(),
        "TEXT": pa.string(),
        "WIDTH": pa.int32(),
        "HEIGHT": pa.int32(),
        "similarity": pa.float64(),
        "punsafe": pa.float64(),
        "pwatermark": pa.float64(),
        "AESTHETIC_SCORE": pa.float64(),
        "hash": pa.int64(),
    }
)


def listed(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([GOOD | row for row in rows], schema=TYPES)


def test_a_row_at_every_threshold_passes():
    kept, refused = policy.apply(listed({}), policy.rules(STRICT))
    assert kept.num_rows == 1
    assert not refused


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"URL": None}, "no_url"),
        ({"URL": " "}, "no_url"),
        ({"TEXT": ""}, "no_caption"),
        ({"WIDTH": 63}, "min_size"),
        ({"HEIGHT": None}, "min_size"),
        ({"punsafe": 0.51}, "max_punsafe"),
        ({"punsafe": None}, "max_punsafe"),
        ({"punsafe": math.nan}, "max_punsafe"),
        ({"pwatermark": 0.9}, "max_pwatermark"),
        ({"AESTHETIC_SCORE": 4.4}, "min_aesthetic"),
        ({"similarity": 0.1}, "min_similarity"),
        ({"WIDTH": 1, "punsafe": 1.0, "similarity": -1.0}, "min_size"),
    ],
)
def test_each_rule_refuses_under_its_own_name(change: dict[str, Any], rule: str):
    kept, refused = policy.apply(listed({}, change), policy.rules(STRICT))
    assert kept.num_rows == 1
    assert refused == {rule: 1}


def _loose(**knobs: Any) -> list[policy.Rule]:
    return policy.rules(IngestConfig(url_list="list.parquet", **knobs))


@pytest.mark.parametrize(
    ("knobs", "kept", "lost"),
    [
        ({"max_aspect": 2.0}, {"WIDTH": 128}, {"WIDTH": 129}),
        ({"max_aspect": 2.0}, {"HEIGHT": 128}, {"HEIGHT": None}),
        ({"min_caption": 3}, {"TEXT": " cat "}, {"TEXT": " ox  "}),
        ({"max_caption": 3}, {"TEXT": "cat"}, {"TEXT": "cats"}),
    ],
)
def test_rules_of_shape(knobs: dict[str, Any], kept: dict[str, Any], lost: dict[str, Any]):
    passed, refused = policy.apply(listed(kept, lost), _loose(**knobs))
    assert passed.num_rows == 1
    assert refused == {next(iter(knobs)): 1}


def test_blocked_domains_mean_their_subdomains_and_no_look_alikes(tmp_path: Path):
    path = tmp_path / "domains.txt"
    path.write_text("# ours\nexample.org\nShop.Example.net.\n\n")
    hosts = {
        "http://example.org/a.jpg": False,
        "https://img.cdn.EXAMPLE.org:8080/a.jpg": False,
        "http://user@example.org/": False,
        "http://example.org.": False,
        "http://shop.example.net?x=/": False,
        "http://example.net/example.org": True,
        "http://notexample.org/a.jpg": True,
        "http://example.org.evil.com/a.jpg": True,
        "mailto:x": True,
    }
    passed, refused = policy.apply(listed(*({"URL": url} for url in hosts)), _loose(blocked_domains=str(path)))
    assert passed["URL"].to_pylist() == [url for url, passes in hosts.items() if passes]
    assert refused == {"blocked_domains": 5}


def test_blocked_hashes(tmp_path: Path):
    path = tmp_path / "hashes.txt"
    path.write_text("7\n-9\n")
    passed, refused = policy.apply(
        listed({"hash": 7}, {"hash": -9}, {"hash": 70}, {"hash": None}), _loose(blocked_hashes=str(path))
    )
    assert passed["hash"].to_pylist() == [70, None]
    assert refused == {"blocked_hashes": 2}


def test_a_missing_file_of_blocked_values_is_named():
    with pytest.raises(ConfigError, match=r"ingest\.blocked_hashes=nowhere\.txt: no such file"):
        _loose(blocked_hashes="nowhere.txt")


def test_rules_that_are_off_need_no_column():
    rules = policy.rules(IngestConfig(url_list="list.parquet"))
    policy.check_columns(["URL", "TEXT"], rules)
    kept, refused = policy.apply(listed({"punsafe": 1.0, "WIDTH": 1}), rules)
    assert (kept.num_rows, refused.total()) == (1, 0)


def test_a_missing_column_is_named_with_those_seen():
    with pytest.raises(ValueError, match=r"punsafe \(for max_punsafe\).*It has: URL, TEXT, WIDTH, HEIGHT"):
        policy.check_columns(["URL", "TEXT", "WIDTH", "HEIGHT", "pwatermark"], policy.rules(STRICT))


score = st.none() | st.floats(allow_nan=True, allow_infinity=True)
text = st.sampled_from([None, "", " ", "\u3000", "a cat", "猫"])
side = st.none() | st.integers(0, 4096)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "URL": text,
            "TEXT": text,
            "WIDTH": side,
            "HEIGHT": side,
            "similarity": score,
            "punsafe": score,
            "pwatermark": score,
            "AESTHETIC_SCORE": score,
        }
    ),
    max_size=30,
)


@settings(deadline=None)  # the first example pays for Arrow's start
@given(rows)
def test_the_partition_adds_up_and_what_is_kept_obeys(found: list[dict[str, Any]]):
    kept, refused = policy.apply(listed(*found), policy.rules(STRICT))
    assert kept.num_rows + refused.total() == len(found)
    assert all(count > 0 for count in refused.values())
    for row in kept.to_pylist():
        assert row["URL"].strip()
        assert row["TEXT"].strip()
        assert min(row["WIDTH"], row["HEIGHT"]) >= 64
        assert row["punsafe"] <= 0.5
        assert row["pwatermark"] <= 0.8
        assert row["AESTHETIC_SCORE"] >= 4.5
        assert row["similarity"] >= 0.2
