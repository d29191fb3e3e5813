from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smooth.config import IngestConfig
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
    kept, refused = policy.apply(listed({}), STRICT)
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
    kept, refused = policy.apply(listed({}, change), STRICT)
    assert kept.num_rows == 1
    assert refused == {rule: 1}


def test_rules_that_are_off_need_no_column():
    config = IngestConfig(url_list="list.parquet")
    policy.check_columns(["URL", "TEXT"], config)
    kept, refused = policy.apply(listed({"punsafe": 1.0, "WIDTH": 1}), config)
    assert (kept.num_rows, refused.total()) == (1, 0)


def test_a_missing_column_is_named_with_those_seen():
    with pytest.raises(ValueError, match=r"punsafe \(for max_punsafe\).*It has: URL, TEXT, WIDTH, HEIGHT"):
        policy.check_columns(["URL", "TEXT", "WIDTH", "HEIGHT", "pwatermark"], STRICT)


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
    kept, refused = policy.apply(listed(*found), STRICT)
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
