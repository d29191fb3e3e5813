"""Duplicates in a list that is longer than memory: keys are spilled to buckets on disk, resolved bucket by bucket.

A row's key is its value where that is an integer, else two keyed 64-bit SipHashes of its text. The hashes' secret is
drawn anew each time, so nobody can write a URL that collides with another on purpose. By chance two of n values do with
a probability below n^2 / 2^129: 4e-20 for five billion rows. The rows that win do not depend on the secret.
"""

from __future__ import annotations

import secrets
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

BUCKETS = 64  # files open at once for each column; a bucket holds 24 bytes a row
MIX = np.uint64(0x9E3779B97F4A7C15)  # integers may be anything but evenly spread
TOP_BITS = np.uint64(64 - (BUCKETS - 1).bit_length())


class Duplicates:
    """Finds the rows whose value an earlier row has; the columns refuse one after the other.

    A row that one column refuses is no longer there for the next. Nulls are no duplicates of each other.
    """

    def __init__(self, folder: Path, rules: dict[str, str]) -> None:
        """``rules`` are {name to count under: column}; ``folder`` takes 24 bytes a row and rule."""
        self.rows = 0
        self._folder = folder
        self._rules = rules
        # Of hash_array's 16 bytes, 8 are secret as it takes them as text.
        self._secrets = (secrets.token_hex(8), secrets.token_hex(8))
        self._files: dict[str, list[Any]] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for name in self._rules:
            buckets = range(BUCKETS)
            self._files[name] = [self._open.enter_context(self._bucket(name, i).open("wb")) for i in buckets]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add(self, table: pa.Table) -> None:
        """Take the next rows."""
        numbers = np.arange(self.rows, self.rows + table.num_rows, dtype=np.uint64)
        self.rows += table.num_rows
        for name, column in self._rules.items():
            values = table[column].combine_chunks()
            known = pc.is_valid(values).to_numpy(zero_copy_only=False)
            self._spill(name, np.column_stack([numbers[known], self._keys(values.drop_null())]))

    def resolve(self) -> tuple[npt.NDArray[np.bool_], Counter[str]]:
        """Which rows are refused, on disk as long as ``folder`` is there, and how many by each rule."""
        self._open.close()
        refused: Counter[str] = Counter()
        if not self.rows:
            return np.zeros(0, bool), refused
        duplicate = np.memmap(self._folder / "duplicate", dtype=bool, mode="w+", shape=self.rows)
        for name in self._rules:
            for number in range(BUCKETS):
                path = self._bucket(name, number)
                found = np.fromfile(path, np.uint64).reshape(-1, 3)
                path.unlink()
                found = found[~duplicate[found[:, 0]]]
                again = found[_seen_before(found[:, 1:]), 0]
                duplicate[again] = True
                refused[name] += len(again)
        return duplicate, +refused

    def _bucket(self, name: str, number: int) -> Path:
        return self._folder / f"{name}-{number:02d}"

    def _spill(self, name: str, records: npt.NDArray[np.uint64]) -> None:
        """Append (row, key, key) to the buckets of their keys; each bucket keeps the rows' order."""
        bucket = ((records[:, 1] ^ records[:, 2]) * MIX >> TOP_BITS).astype(np.uint8)
        records = records[np.argsort(bucket, kind="stable")]
        ends = np.cumsum(np.bincount(bucket, minlength=BUCKETS))[:-1]
        for file, part in zip(self._files[name], np.split(records, ends), strict=True):
            part.tofile(file)

    def _keys(self, values: pa.Array) -> npt.NDArray[np.uint64]:
        """(N, 2) keys of values without nulls."""
        if pa.types.is_integer(values.type):
            number = values.to_numpy().astype(np.uint64)
            return np.column_stack([number, np.zeros_like(number)])
        from pandas.util import hash_array  # a third of a second, for lists alone

        objects = pc.cast(pc.cast(values, pa.large_string()), pa.large_binary()).to_numpy(zero_copy_only=False)
        return np.column_stack([hash_array(objects, hash_key=key, categorize=False) for key in self._secrets])


def _seen_before(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of the (N, 2) keys stand further up, too."""
    if not len(keys):
        return np.zeros(0, bool)
    whole = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys.tobytes())])
    # Codes are given in the order of first appearance: a code that is not beyond all before it is an old one.
    codes = whole.dictionary_encode().indices.to_numpy()
    return np.concatenate([[False], codes[1:] <= np.maximum.accumulate(codes)[:-1]])
