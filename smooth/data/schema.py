"""The latents' Parquet schemas: one row a view of a picture, one a distinct caption; shapes and units in the metadata.

Tensors are fixed-size lists in C order, so that any Parquet reader sees numbers; their shape, layout
and unit stand in the field's metadata, from which :func:`tensor` gives back arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

NULL_TEXT = "null_text.safetensors"  # what stands for no prompt: the texts' tensors by the names of their columns


def rows_schema(latent_shape: Sequence[int]) -> pa.Schema:
    """Schema of the rows, with latents of ``latent_shape`` (C, H, W)."""
    channels, height, width = latent_shape
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False, metadata=_describe("the shard's key; rows are ordered by it")),
            pa.field("caption", pa.string(), nullable=False),
            _tensor_field(
                "moments",
                pa.float16(),
                (2 * channels, height, width),
                layout="CHW",
                unit="VAE posterior: C channels of mean, then C of log-variance; before scaling_factor",
            ),
            pa.field("text_row", pa.int32(), False, _describe("row of the part's texts that holds this caption's")),
            _tensor_field(
                "crop",
                pa.int32(),
                (4,),
                layout="top, left, height, width",
                unit="pixels of the original picture: the part that the latents show",
            ),
            pa.field("flipped", pa.bool_(), False, _describe("the latents show the mirror image")),
            _tensor_field("original_size", pa.int32(), (2,), layout="height, width", unit="pixels"),
        ],
        metadata={"smooth.latent_shape": json.dumps(list(latent_shape))},
    )


def texts_schema(text_shape: Sequence[int], pooled_width: int = 0) -> pa.Schema:
    """Schema of a part's distinct captions. ``text_shape`` is (L, D) for embeddings, (L,) for token ids.

    ``pooled_width`` is that of the pooled embedding beside it, 0 where the model has none.
    """
    ids = len(text_shape) == 1
    pooled = _tensor_field("pooled", pa.float16(), (pooled_width,), layout="D", unit="pooled embedding of the caption")
    return pa.schema(
        [
            pa.field("caption", pa.string(), nullable=False),
            _tensor_field(
                "text",
                pa.int32() if ids else pa.float16(),
                tuple(text_shape),
                layout="L" if ids else "LD",
                unit="token ids" if ids else "the text encoders' hidden states",
            ),
            *([pooled] if pooled_width else []),
        ],
        metadata={"smooth.text_shape": json.dumps([*text_shape])},
    )


def _tensor_field(name: str, kind: pa.DataType, shape: tuple[int, ...], layout: str, unit: str) -> pa.Field:
    metadata = {"shape": json.dumps(shape), "layout": layout, **_describe(unit)}
    return pa.field(name, pa.list_(pa.field("element", kind, nullable=False), math.prod(shape)), False, metadata)


def _describe(unit: str) -> dict[str, str]:
    return {"unit": unit}


def table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Build a table from plain values and stacked arrays ``(N, *shape)``.

    Raises:
        ValueError: an array's shape or dtype is not what the schema says.
    """
    return pa.Table.from_arrays([_column(columns[field.name], field) for field in schema], schema=schema)


def _column(values: Any, field: pa.Field) -> pa.Array:
    if not pa.types.is_fixed_size_list(field.type):
        return pa.array(list(values), field.type)
    expected = (len(values), *shape_of(field))
    kind = field.type.value_type
    if values.shape != expected or values.dtype != kind.to_pandas_dtype():
        raise ValueError(f"column {field.name} is {values.dtype} {values.shape}, the schema says {kind} {expected}")
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=field.type)


def shape_of(field: pa.Field) -> tuple[int, ...]:
    """Shape of one row of a tensor column."""
    return tuple(json.loads(field.metadata[b"shape"]))


def same(found: pa.Schema, expected: pa.Schema) -> bool:
    """Whether columns, types and shapes agree."""
    if (found.names, found.types) != (expected.names, expected.types):
        return False
    tensors = [field for field in expected if pa.types.is_fixed_size_list(field.type)]
    return all(shape_of(found.field(field.name)) == shape_of(field) for field in tensors)


def tensor(rows: pa.Table, name: str) -> npt.NDArray[Any]:
    """A tensor column as an array ``(N, *shape)`` of its own dtype, with the shape from the schema's metadata."""
    field = rows.schema.field(name)
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in rows[name].chunks]
    flat = np.concatenate(chunks) if chunks else np.empty(0, field.type.value_type.to_pandas_dtype())
    return flat.reshape(rows.num_rows, *shape_of(field))
