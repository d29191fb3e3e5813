"""Write a stream of rows as one Parquet file, row group by row group, so that memory holds no more than one."""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from smooth.data import schema


@dataclass(frozen=True)
class Written:
    """What was written: the file's facts, and how many of its bytes each tensor column takes."""

    rows: int
    bytes: int
    sha256: str
    columns: dict[str, int]


class TableWriter:
    """Cuts rows into row groups of ``group_rows``. The same rows give the same bytes, however they arrive."""

    def __init__(self, handle: BinaryIO, layout: pa.Schema, group_rows: int) -> None:
        self._layout = layout
        self._group_rows = group_rows
        self._sink = _HashedWrites(handle)
        # Half-precision noise has no repeated values: a dictionary costs three times the time and saves nothing.
        self._writer = pq.ParquetWriter(self._sink, layout, compression="zstd", use_dictionary=False)
        self._waiting = layout.empty_table()
        self._rows = 0

    def add(self, rows: dict[str, Any]) -> None:
        """Take rows (columns of plain values and stacked arrays) and write the row groups that they fill."""
        table = pa.concat_tables([self._waiting, schema.table(rows, self._layout)])
        whole = table.num_rows - table.num_rows % self._group_rows
        self._write(table.slice(0, whole))
        self._waiting = table.slice(whole)

    def close(self) -> Written:
        """Write what is left and the footer."""
        self._write(self._waiting)
        self._writer.close()
        footer: pq.FileMetaData = self._writer.writer.metadata
        columns: dict[str, int] = {}
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            for place in range(group.num_columns):
                column = group.column(place)
                name = column.path_in_schema.partition(".")[0]
                columns[name] = columns.get(name, 0) + column.total_compressed_size
        return Written(self._rows, self._sink.size, self._sink.digest.hexdigest(), columns)

    def abandon(self) -> None:
        """Let go of a file that won't be finished; else Parquet writes its rest when it is collected, and fails."""
        self._sink.is_abandoned = True
        with suppress(OSError):  # what its last write met, once more
            self._writer.close()

    def _write(self, table: pa.Table) -> None:
        if table.num_rows:
            self._writer.write_table(table.combine_chunks(), row_group_size=self._group_rows)
            self._rows += table.num_rows


class _HashedWrites(io.RawIOBase):
    """A file object that hashes and counts what goes through it."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.digest = hashlib.sha256()
        self.size = 0
        self.is_abandoned = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any, /) -> int:
        if not self.is_abandoned:
            self._handle.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)
