"""Check a finished latents folder against its manifest, show what it decodes to, and mend what is broken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smooth import store
from smooth.config import RunConfig
from smooth.data import parts, schema


@dataclass(frozen=True)
class Fault:
    """Something that is not as the manifest says. ``part`` is None where it is in no part."""

    part: str | None
    text: str


@dataclass(frozen=True)
class Found:
    """What a check has seen."""

    parts: int
    rows: int
    faults: tuple[Fault, ...]


def verify(folder: str) -> Found:
    """Read every byte of the folder: counts, hashes, shapes, finiteness, and that each row has its own text.

    Raises:
        ArtifactError: the folder isn't finished.
    """
    manifest = store.read_manifest(folder)
    files: list[parts.Facts] = manifest["files"]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing and decompressing let go of the interpreter
        faults = [
            Fault(facts["part"], text)
            for facts, texts in zip(
                files, threads.map(lambda facts: list(_part_faults(folder, manifest, facts)), files), strict=True
            )
            for text in texts
        ]
    faults += [Fault(None, text) for text in _folder_faults(folder, manifest)]
    return Found(len(files), manifest["rows"], tuple(faults))


def _folder_faults(folder: str, manifest: dict[str, Any]) -> Iterator[str]:
    counted = sum(facts["rows"] for facts in manifest["files"])
    if counted != manifest["rows"]:
        yield f"{store.MANIFEST}: {manifest['rows']} rows, its parts have {counted}"
    path = store.join(folder, schema.NULL_TEXT)
    if not store.exists(path):
        yield f"{schema.NULL_TEXT} is missing"
    elif store.sha256(path) != manifest["null_text"]:
        yield f"{schema.NULL_TEXT} is not the file that was written"


def _part_faults(folder: str, manifest: dict[str, Any], facts: parts.Facts) -> Iterator[str]:
    """What is wrong with one part."""
    if parts.read_facts(folder, facts["part"]) != {name: facts[name] for name in facts if name != "shard"}:
        yield f"{parts.facts_name(facts['part'])} is not what the manifest says"
    whole = True
    for file in parts.files_of(facts):
        path = store.join(folder, file["name"])
        if not store.exists(path):
            yield f"{file['name']} is missing"
        elif store.sha256(path) != file["sha256"]:
            yield f"{file['name']} is not the file that was written"
        else:
            continue
        whole = False
    if whole:
        yield from _content_faults(folder, manifest, facts)


def _content_faults(folder: str, manifest: dict[str, Any], facts: parts.Facts) -> Iterator[str]:
    """What is wrong with a part whose bytes are those that were written."""
    texts_layout = schema.texts_schema(manifest["text_shape"], manifest.get("pooled_width", 0))
    rows_layouts = [schema.rows_schema(shape) for shape in manifest["latent_shapes"]]
    if len(facts["latents"]) != len(rows_layouts):
        yield f"{len(facts['latents'])} files of rows, the manifest has {len(rows_layouts)} sizes of latents"
        return
    # The texts first: rows are compared with them.
    described = [(facts["texts"], texts_layout), *zip(facts["latents"], rows_layouts, strict=True)]
    texts: list[str] = []
    for file, layout in described:
        name = "text" if layout is texts_layout else "moments"
        fs, inner = store.filesystem(store.join(folder, file["name"]))
        with fs.open(inner, "rb") as handle, pq.ParquetFile(handle) as parquet:
            if not schema.same(parquet.schema_arrow, layout):
                yield f"{file['name']} has other columns or shapes than the manifest says"
                continue
            if parquet.metadata.num_rows != file["rows"]:
                yield f"{file['name']} has {parquet.metadata.num_rows} rows, the manifest says {file['rows']}"
            bad, strange = 0, 0
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group)
                bad += int((~np.isfinite(schema.tensor(rows, name)).reshape(rows.num_rows, -1).all(axis=1)).sum())
                if name == "text":
                    texts += rows["caption"].to_pylist()
                else:
                    strange += _strangers(rows, texts)
        if bad:
            yield f"{file['name']}: {name} of {bad} rows is not finite"
        if strange:
            yield f"{file['name']}: {strange} rows point to another caption's text"


def _strangers(rows: pa.Table, texts: list[str]) -> int:
    pairs = zip(rows["caption"].to_pylist(), rows["text_row"].to_pylist(), strict=True)
    return sum(not 0 <= place < len(texts) or texts[place] != caption for caption, place in pairs)


def repair(config: RunConfig) -> tuple[Found, dict[str, Any]]:
    """Encode the parts anew in which :func:`verify` finds a fault; no other file is touched.

    Returns what was found, and the manifest.

    Raises:
        ArtifactError: the shards that the parts would be made of are gone; nothing is touched then.
    """
    from smooth.data import latents

    folder = config.stage_dir("latents")
    found = verify(folder)
    if not found.faults:
        return found, store.read_manifest(folder)
    store.read_manifest(config.stage_dir("ingest"))
    # Before the parts, so that an interruption leaves a folder that the stage goes on with.
    fs, inner = store.filesystem(store.join(folder, store.MANIFEST))
    fs.rm_file(inner)
    for part in {fault.part for fault in found.faults if fault.part is not None}:
        parts.remove(folder, part)
    return found, latents.run(config)
