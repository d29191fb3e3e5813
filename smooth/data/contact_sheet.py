"""A few rows of a latents folder decoded, each under the pixels that it was made of."""

from __future__ import annotations

import io
from itertools import chain
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from smooth import store
from smooth.config import LatentsConfig, RunConfig
from smooth.data import pictures, schema
from smooth.data.encoder import Encoder
from smooth.data.shards import Shard, ShardReader

NAME = "contact_sheet.png"
FILES, ROWS_OF_EACH = 4, 6  # evenly spread; a file's shard is read whole to find its pictures

Item = TypeVar("Item")
Pixels = npt.NDArray[np.uint8]  # (N, H, W, 3)


def write(config: RunConfig) -> tuple[str, float | None]:
    """Write the sheet into the latents folder and return its path.

    The second value is the mean absolute difference of what is decoded from its sources, in units of 0..255;
    None where the shards are gone and the sheet shows no sources.

    Raises:
        ArtifactError: the folder isn't finished, or was made with other networks than those of ``config``.
    """
    folder, source = config.stage_dir("latents"), config.stage_dir("ingest")
    manifest = store.read_manifest(folder)
    encoder = Encoder(config.model.base, config.model.revision, config.latents.cache_text)
    for name, digest in encoder.hashes().items():
        if manifest[name] != digest:
            raise store.ArtifactError(
                f"{folder} was made with {name} {manifest[name]}, model.base={config.model.base} now has {digest}; "
                "pin model.revision, or delete the folder and run the latents stage again"
            )
    ingested = store.read_manifest(source) if store.is_complete(source) else {"shards": []}
    shards = {shard.name: shard for shard in Shard.of(ingested)}
    bands: list[Pixels] = []
    differences: list[float] = []
    sizes = len(manifest["latent_shapes"])
    listed = [[(facts, facts["latents"][size]) for facts in manifest["files"]] for size in range(sizes)]
    filled = [[(facts, file) for facts, file in of_size if file["rows"]] for of_size in listed]
    for facts, file in chain.from_iterable(spread(of_size, max(1, FILES // sizes)) for of_size in filled):
        rows = _rows(store.join(folder, file["name"]), file["rows"])
        decoded = encoder.pictures(schema.tensor(rows, "moments"))
        if shard := shards.get(facts["shard"]):
            reader = ShardReader(source, shard, ingested["encoding"])
            originals = np.stack([_source(reader, row, config.latents) for row in rows.to_pylist()])
            differences.append(float(np.abs(originals.astype(np.int16) - decoded).mean()))
            bands.append(originals)
        bands.append(decoded)
    path = store.join(folder, NAME)
    store.write_bytes(path, _png(bands))
    return path, sum(differences) / len(differences) if differences else None


def spread(items: list[Item], count: int) -> list[Item]:
    """At most ``count`` of the items, evenly spread."""
    return [items[number * len(items) // count] for number in range(count)] if len(items) > count else items


def _rows(path: str, count: int) -> pa.Table:
    """Some rows of a part, read by their row groups."""
    fs, inner = store.filesystem(path)
    wanted = spread(list(range(count)), ROWS_OF_EACH)
    with fs.open(inner, "rb") as handle, pq.ParquetFile(handle) as parquet:
        found, start = [], 0
        for number in range(parquet.num_row_groups):
            end = start + parquet.metadata.row_group(number).num_rows
            if places := [row - start for row in wanted if start <= row < end]:
                found.append(parquet.read_row_group(number).take(places))
            start = end
    return pa.concat_tables(found)


def _source(reader: ShardReader, row: dict[str, object], settings: LatentsConfig) -> npt.NDArray[np.uint8]:
    """The pixels (H, W, 3) that a row was made of."""
    sample = reader.read(str(row["key"]))
    for view in pictures.views(sample.picture, sample.key, sample.original_size, settings):
        if (list(view.crop), view.flipped) == (row["crop"], row["flipped"]):
            return view.pixels
    raise store.ArtifactError(f"{reader.path} gives no view of {sample.key} with the crop {row['crop']}")


def _png(bands: list[Pixels]) -> bytes:
    """Bands of pictures below each other."""
    width = max(len(band) * band.shape[2] for band in bands)
    sheet = Image.new("RGB", (width, sum(band.shape[1] for band in bands)), "white")
    top = 0
    for band in bands:
        for place, picture in enumerate(band):
            sheet.paste(Image.fromarray(picture), (place * band.shape[2], top))
        top += band.shape[1]
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
