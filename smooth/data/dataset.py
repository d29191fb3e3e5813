"""A finished latents folder as rows at random access, with recently read row groups kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors

from smooth import store
from smooth.data import schema

# Rows shuffled together. An epoch visits row groups in random order and mixes the rows of as many groups as fill
# a window, so a data set larger than memory is read once an epoch; a smaller one is shuffled as a whole.
WINDOW_ROWS = 4096


@dataclass(frozen=True)
class RowGroup:
    """A part of the data set that is read at once."""

    rows_path: str
    group: int  # number of the row group inside the file
    rows: int
    texts_path: str


@dataclass(frozen=True)
class _Rows:
    """What a row group holds, each of its distinct texts once."""

    moments: NDArray[np.float16]  # (N, 2C, H, W)
    texts: NDArray[Any]  # (M, L, D) float16 or (M, L) int32
    text_of: NDArray[np.int64]  # (N,) place in texts


class LatentsDataset:
    """Random access to the rows of a finished latents folder."""

    def __init__(self, folder: str) -> None:
        """Open the folder's manifest and the footers of its Parquet files.

        Raises:
            ArtifactError: the folder isn't finished, or its files don't hold the rows that its manifest says.
        """
        manifest = store.read_manifest(folder)
        self.ingested: str = manifest["ingest"]
        self.latent_shape: tuple[int, int, int] = tuple(manifest["latent_shape"])
        self.text_shape: tuple[int, ...] = tuple(manifest["text_shape"])
        self.scaling_factor = float(manifest["scaling_factor"])
        self.groups = [
            group
            for file in manifest["files"]
            for group in _row_groups(store.join(folder, file["name"]), store.join(folder, file["texts"]["name"]))
        ]
        self.starts = np.cumsum([0, *(group.rows for group in self.groups)])  # first row of each group, then the total
        if len(self) != manifest["rows"] or not len(self):
            raise store.ArtifactError(
                f"{folder} holds {len(self)} rows, its manifest says {manifest['rows']}; "
                "run `smooth latents repair`, or delete the folder and run the latents stage again"
            )
        null_text = load_safetensors(store.read_bytes(store.join(folder, schema.NULL_TEXT)))["text"]
        null_text = null_text.reshape(self.text_shape)
        self.null_text = null_text.long() if self.holds_token_ids else null_text.float()
        self._cache: OrderedDict[int, _Rows] = OrderedDict()

    @property
    def holds_token_ids(self) -> bool:
        """Whether texts are token ids (L,), still to be encoded, instead of embeddings (L, D)."""
        return len(self.text_shape) == 1

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, number: int) -> tuple[NDArray[np.float16], NDArray[Any]]:
        """Posterior moments (2C, H, W), mean before log-variance, and the text of a row as it is stored."""
        group = int(np.searchsorted(self.starts, number, side="right")) - 1
        rows = self._read(group)
        place = number - int(self.starts[group])
        return rows.moments[place], rows.texts[rows.text_of[place]]

    def _read(self, group: int) -> _Rows:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        rows = self._cache[group] = _read_group(self.groups[group])
        # Ranks walk through a window and into the next: two windows, and never less than one group.
        while len(self._cache) > 1 and sum(self.groups[key].rows for key in self._cache) > 2 * WINDOW_ROWS:
            self._cache.popitem(last=False)
        return rows


def _open(path: str) -> pq.ParquetFile:
    fs, inner = store.filesystem(path)
    return pq.ParquetFile(fs.open(inner, "rb"))


def _row_groups(rows_path: str, texts_path: str) -> list[RowGroup]:
    with _open(rows_path) as file:
        return [RowGroup(rows_path, number, rows, texts_path) for number, rows in enumerate(_group_sizes(file))]


def _group_sizes(file: pq.ParquetFile) -> list[int]:
    footer = file.metadata
    return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


def _read_group(group: RowGroup) -> _Rows:
    with _open(group.rows_path) as file:
        rows = file.read_row_group(group.group, columns=["moments", "text_row"])
    wanted, text_of = np.unique(rows["text_row"].to_numpy(), return_inverse=True)
    return _Rows(schema.tensor(rows, "moments"), _read_texts(group.texts_path, wanted), text_of)


def _read_texts(path: str, wanted: NDArray[np.int32]) -> NDArray[Any]:
    """The wanted rows (sorted) of a part's texts, by the small row groups that hold them."""
    with _open(path) as file:
        starts = np.cumsum([0, *_group_sizes(file)])
        groups = np.unique(np.searchsorted(starts, wanted, side="right") - 1)
        texts = schema.tensor(file.read_row_groups(groups.tolist(), columns=["text"]), "text")
    numbers = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in groups])
    return texts[np.searchsorted(numbers, wanted)]
