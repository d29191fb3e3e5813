"""Tensors in Parquet, and files that are written row group by row group."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from smooth import store
from smooth.data import schema
from smooth.data.writer import TableWriter

LAYOUT = schema.rows_schema((4, 4, 6))


def rows(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "key": [f"{index:09d}" for index in range(count)],
        "caption": [f"größe {index} 🦊\0" for index in range(count)],
        "moments": rng.standard_normal((count, 8, 4, 6)).astype(np.float16),
        "text_row": np.arange(count)[::-1],
        "crop": np.tile(np.array([0, 1, 2, 3], np.int32), (count, 1)),
        "flipped": [index % 2 == 1 for index in range(count)],
        "original_size": np.tile(np.array([64, 65], np.int32), (count, 1)),
    }


def test_tensors_survive_parquet_with_shape_and_dtype(tmp_path: Path):
    data = rows(9)
    pq.write_table(schema.table(data, LAYOUT), tmp_path / "a.parquet", row_group_size=4)
    read = pq.read_table(tmp_path / "a.parquet")
    for name in ("moments", "crop", "original_size"):
        back = schema.tensor(read, name)
        assert back.dtype == data[name].dtype
        assert np.array_equal(back, data[name])
    assert np.array_equal(schema.tensor(read.slice(3, 5), "moments"), data["moments"][3:8])
    for name in ("key", "caption", "text_row", "flipped"):
        assert read[name].to_pylist() == list(data[name])


@pytest.mark.parametrize(("shape", "dtype"), [((5, 7), np.float16), ((5,), np.int32)])
def test_texts_are_embeddings_or_token_ids(shape: tuple[int, ...], dtype: Any):
    texts = (100 * np.random.default_rng(0).standard_normal((3, *shape))).astype(dtype)
    table = schema.table({"caption": ["a", "b", "c"], "text": texts}, schema.texts_schema(shape))
    back = schema.tensor(table, "text")
    assert back.dtype == dtype
    assert np.array_equal(back, texts)


def test_units_and_shapes_are_in_the_file(tmp_path: Path):
    pq.write_table(schema.table(rows(1), LAYOUT), tmp_path / "a.parquet")
    found = pq.read_schema(tmp_path / "a.parquet")
    assert schema.shape_of(found.field("moments")) == (8, 4, 6)
    assert b"log-variance" in found.field("moments").metadata[b"unit"]
    assert found.metadata[b"smooth.latent_shape"] == b"[4, 4, 6]"


@pytest.mark.parametrize("wrong", [np.zeros((2, 8, 4, 5), np.float16), np.zeros((2, 8, 4, 6), np.float32)])
def test_a_wrong_shape_or_dtype_is_refused(wrong: np.ndarray[Any, Any]):
    with pytest.raises(ValueError, match="column moments is"):
        schema.table(rows(2) | {"moments": wrong}, LAYOUT)


def test_an_empty_table_keeps_its_shape():
    assert schema.tensor(LAYOUT.empty_table(), "moments").shape == (0, 8, 4, 6)


def test_a_file_does_not_depend_on_how_its_rows_arrive(tmp_path: Path):
    data = rows(23)
    results = []
    for step in (1, 23, 7):
        path = tmp_path / f"{step}.parquet"
        with path.open("wb") as handle:
            writer = TableWriter(handle, LAYOUT, group_rows=10)
            for first in range(0, 23, step):
                writer.add({key: values[first : first + step] for key, values in data.items()})
            results.append(writer.close())
        assert (store.sha256(str(path)), path.stat().st_size) == (results[-1].sha256, results[-1].bytes)
    assert results[0] == results[1] == results[2]
    footer = pq.read_metadata(path)
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [10, 10, 3]
    assert np.array_equal(schema.tensor(pq.read_table(path), "moments"), data["moments"])
    # Noise does not compress: moments take about what their numbers take.
    assert results[0].columns["moments"] == pytest.approx(data["moments"].nbytes, rel=0.2)
    assert sum(results[0].columns.values()) < results[0].bytes


def test_no_rows_are_a_file_without_rows():
    handle = io.BytesIO()
    assert TableWriter(handle, LAYOUT, group_rows=10).close().rows == 0
    handle.seek(0)
    assert pq.read_table(handle).schema.names == LAYOUT.names
