"""Every way in which a latents folder can be wrong is a fault of its own, in one part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from smooth import store
from smooth.config import RunConfig
from smooth.data import parts, schema, verify

LATENT, TEXT = (2, 4, 4), (3, 5)


def columns(count: int, **changed: Any) -> dict[str, Any]:
    return {
        "key": [f"{number:03d}" for number in range(count)],
        "caption": [f"caption {number % 3}" for number in range(count)],
        "moments": np.ones((count, 4, 4, 4), np.float16),
        "text_row": [number % 3 for number in range(count)],
        "crop": np.zeros((count, 4), np.int32),
        "flipped": [False] * count,
        "original_size": np.ones((count, 2), np.int32),
    } | changed


def write(folder: Path, texts: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    """Two parts, of which the second is changed."""
    sound = {"caption": [f"caption {number}" for number in range(3)], "text": np.ones((3, *TEXT), np.float16)}
    files = []
    for name, of_rows, of_texts in (("a", {}, sound), ("b", changed, texts or sound)):
        with parts.writing(str(folder), name, [schema.rows_schema(LATENT)], schema.texts_schema(TEXT)) as part:
            part.add(part.rows[0], columns(9, **of_rows))
            part.add(part.texts, of_texts)
        files.append({**parts.finished(str(folder), [name])[name], "shard": f"{name}.tar"})
    null_text = save({"text": np.zeros(TEXT, np.float16)})
    store.write_bytes(str(folder / schema.NULL_TEXT), null_text)
    manifest = {"rows": 18, "latent_shapes": [LATENT], "text_shape": TEXT, "files": files}
    return store.write_manifest(str(folder), manifest | {"null_text": hashlib.sha256(null_text).hexdigest()})


def faults(folder: Path) -> list[tuple[str | None, str]]:
    return [(fault.part, fault.text) for fault in verify.verify(str(folder)).faults]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_sound_folder_has_no_fault(tmp_path: Path) -> None:
    write(tmp_path)
    assert verify.verify(str(tmp_path)) == verify.Found(parts=2, rows=18, faults=())


@pytest.mark.parametrize(
    ("damage", "part", "text"),
    [
        (
            lambda folder: flip(folder / "part-b.4x4.parquet"),
            "b",
            "part-b.4x4.parquet is not the file that was written",
        ),
        (lambda folder: flip(folder / "part-b.texts.parquet"), "b", "part-b.texts.parquet is not the file that was"),
        (lambda folder: (folder / "part-a.4x4.parquet").unlink(), "a", "part-a.4x4.parquet is missing"),
        (lambda folder: (folder / "part-a.json").write_text("{}"), "a", "part-a.json is not what the manifest says"),
        (lambda folder: flip(folder / schema.NULL_TEXT), None, f"{schema.NULL_TEXT} is not the file"),
        (lambda folder: (folder / schema.NULL_TEXT).unlink(), None, f"{schema.NULL_TEXT} is missing"),
    ],
)
def test_damage_is_found_where_it_is(
    tmp_path: Path, damage: Callable[[Path], None], part: str | None, text: str
) -> None:
    write(tmp_path)
    damage(tmp_path)
    ((found, message),) = faults(tmp_path)
    assert found == part
    assert message.startswith(text)


NAN = np.full((9, 4, 4, 4), np.nan, np.float16)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"moments": NAN}, "part-b.4x4.parquet: moments of 9 rows is not finite"),
        ({"text_row": [0, 1, 2, 0, 1, 2, 0, 2, 9]}, "part-b.4x4.parquet: 2 rows point to another caption's text"),
        (
            {"texts": {"caption": [f"caption {n}" for n in range(3)], "text": np.full((3, *TEXT), np.inf, np.float16)}},
            "part-b.texts.parquet: text of 3 rows is not finite",
        ),
    ],
)
def test_wrong_contents_are_found_though_the_bytes_are_those_written(
    tmp_path: Path, changed: dict[str, Any], text: str
) -> None:
    write(tmp_path, **changed)
    assert faults(tmp_path) == [("b", text)]


def test_other_shapes_and_counts_than_the_manifests_are_found(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    store.write_manifest(str(tmp_path), manifest | {"latent_shapes": [(2, 2, 8)], "rows": 17})
    assert faults(tmp_path) == [
        ("a", "part-a.4x4.parquet has other columns or shapes than the manifest says"),
        ("b", "part-b.4x4.parquet has other columns or shapes than the manifest says"),
        (None, "manifest.json: 17 rows, its parts have 18"),
    ]
    changed = json.loads(json.dumps(manifest))
    changed["files"][1]["latents"][0]["rows"] = 10
    store.write_manifest(str(tmp_path), changed)
    assert ("b", "part-b.4x4.parquet has 9 rows, the manifest says 10") in faults(tmp_path)


def test_without_shards_nothing_is_repaired_and_nothing_lost(tmp_path: Path) -> None:
    config = RunConfig.load("tiny", [f"storage.root={tmp_path}"])
    folder = Path(config.stage_dir("latents"))
    write(folder)
    flip(folder / "part-b.4x4.parquet")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(store.ArtifactError, match=r"no finished artifact at .*ingest"):
        verify.repair(config)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
