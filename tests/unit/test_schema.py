from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smooth import store
from smooth.data import schema
from smooth.data.writer import PartWriter


def rows(count: int, text: tuple[int, ...] = (5, 7), start: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(start)
    kind: Any = np.int32 if len(text) == 1 else np.float16
    return {
        "key": np.array([f"{start + index:09d}" for index in range(count)], dtype=object),
        "caption": np.array([f"größe {index} 🦊" for index in range(count)], dtype=object),
        "moments": rng.standard_normal((count, 8, 4, 6)).astype(np.float16),
        "text": (100 * rng.standard_normal((count, *text))).astype(kind),
        "crop": np.tile(np.array([0, 1, 2, 3], np.int32), (count, 1)),
        "original_size": np.tile(np.array([64, 65], np.int32), (count, 1)),
    }


@pytest.mark.parametrize("text", [(5, 7), (5,)])
def test_tensors_survive_parquet_with_shape_and_dtype(tmp_path: Path, text: tuple[int, ...]):
    data = rows(9, text)
    table = schema.table(data, schema.latents_schema((4, 4, 6), text))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    read = pq.read_table(tmp_path / "a.parquet")
    for name in ("moments", "text", "crop", "original_size"):
        back = schema.tensor(read, name)
        assert back.dtype == data[name].dtype
        assert np.array_equal(back, data[name])
    assert np.array_equal(schema.tensor(read.slice(3, 5), "moments"), data["moments"][3:8])
    assert read["caption"].to_pylist() == list(data["caption"])


def test_units_and_shapes_are_in_the_file(tmp_path: Path):
    pq.write_table(schema.table(rows(1), schema.latents_schema((4, 4, 6), (5, 7))), tmp_path / "a.parquet")
    found = pq.read_schema(tmp_path / "a.parquet")
    assert schema.shape_of(found.field("moments")) == (8, 4, 6)
    assert b"log-variance" in found.field("moments").metadata[b"unit"]
    assert found.metadata[b"smooth.latent_shape"] == b"[4, 4, 6]"


@pytest.mark.parametrize("wrong", [np.zeros((2, 8, 4, 5), np.float16), np.zeros((2, 8, 4, 6), np.float32)])
def test_a_wrong_shape_or_dtype_is_refused(wrong: np.ndarray[Any, Any]):
    with pytest.raises(ValueError, match="column moments is"):
        schema.table(rows(2) | {"moments": wrong}, schema.latents_schema((4, 4, 6), (5, 7)))


def test_an_empty_table_keeps_its_shape():
    empty = schema.latents_schema((4, 4, 6), (5, 7)).empty_table()
    assert schema.tensor(empty, "moments").shape == (0, 8, 4, 6)


def test_files_do_not_depend_on_how_rows_arrive(tmp_path: Path):
    layout = schema.latents_schema((4, 4, 6), (5, 7))
    data = rows(23)
    results = []
    for name, step in (("a", 1), ("b", 23), ("c", 7)):
        writer = PartWriter(str(tmp_path / name), layout, rows_per_file=10)
        for first in range(0, 23, step):
            writer.add({key: values[first : first + step] for key, values in data.items()})
        results.append(writer.close())
    assert results[0] == results[1] == results[2]
    assert [item["rows"] for item in results[0]] == [10, 10, 3]
    for item in results[0]:
        assert store.sha256(str(tmp_path / "a" / item["name"])) == item["sha256"]
    whole = pa.concat_tables(pq.read_table(tmp_path / "a" / item["name"]) for item in results[0])
    assert np.array_equal(schema.tensor(whole, "moments"), data["moments"])


def test_a_writer_without_rows_writes_no_file(tmp_path: Path):
    writer = PartWriter(str(tmp_path), schema.latents_schema((4, 4, 6), (5, 7)), rows_per_file=10)
    assert writer.close() == []
    assert list(tmp_path.iterdir()) == []
