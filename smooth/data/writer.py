"""Write a stream of rows as numbered Parquet files of equal length, each whole or absent."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from smooth import store
from smooth.data import schema

ROW_GROUP = 256


class PartWriter:
    """Cuts the rows into ``part-00000.parquet``, ``part-00001.parquet`` … of ``rows_per_file`` rows.

    The same rows give the same bytes, however they were batched on the way in.
    """

    def __init__(self, folder: str, layout: pa.Schema, rows_per_file: int) -> None:
        self.folder = folder
        self.layout = layout
        self.rows_per_file = rows_per_file
        self.files: list[dict[str, Any]] = []
        self._waiting: list[pa.Table] = []

    def add(self, rows: dict[str, Any]) -> None:
        """Take rows (columns of strings and stacked arrays) and write the files that they fill."""
        self._waiting.append(schema.table(rows, self.layout))
        while sum(table.num_rows for table in self._waiting) >= self.rows_per_file:
            whole = pa.concat_tables(self._waiting)
            self._write(whole.slice(0, self.rows_per_file))
            self._waiting = [whole.slice(self.rows_per_file)]

    def close(self) -> list[dict[str, Any]]:
        """Write what is left; return name, rows and sha256 of every file."""
        rest = pa.concat_tables(self._waiting) if self._waiting else self.layout.empty_table()
        if rest.num_rows:
            self._write(rest)
        self._waiting = []
        return self.files

    def _write(self, table: pa.Table) -> None:
        buffer = io.BytesIO()
        # Half-precision noise has no repeated values: a dictionary costs three times the time and saves nothing.
        pq.write_table(
            table.combine_chunks(), buffer, row_group_size=ROW_GROUP, compression="zstd", use_dictionary=False
        )
        data = buffer.getvalue()
        name = f"part-{len(self.files):05d}.parquet"
        store.write_bytes(store.join(self.folder, name), data)
        self.files.append({"name": name, "rows": table.num_rows, "sha256": hashlib.sha256(data).hexdigest()})
