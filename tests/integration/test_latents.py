"""The real stage: Ray Data and an actor pool over shards on disk, against diffusers called directly."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from smooth import store
from smooth.config import RunConfig
from smooth.data import latents, openmoji, schema
from smooth.models.pipeline import load_pipeline

# Ray Data's own defaults set options that it warns about.
pytestmark = pytest.mark.filterwarnings(r"ignore:`\w+` is deprecated:DeprecationWarning:ray.data.context")

PICTURES, SHARD = 50, 30
BROKEN = 37  # its picture is not a picture


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def config_of(root: Path, base: str, *overrides: str) -> RunConfig:
    return RunConfig.load(
        "tiny",
        [f"storage.root={root}", f"model.base={base}", "latents.rows_per_file=20", "latents.batch_size=8", *overrides],
    )


def pixels_of(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    drawing = openmoji.drawings()[number * 7]
    return openmoji.render(drawing, 64, openmoji.Style.draw(drawing.key, 0))


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: str) -> None:
    """What ingest leaves behind, its members out of order as downloads end."""
    shards = []
    for first in range(0, PICTURES, SHARD):
        numbers = list(range(first, min(PICTURES, first + SHARD)))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for number in reversed(numbers):
                facts = json.dumps({"original_height": 100, "original_width": 128})
                picture = b"\x89PNG\r\n\x1a\nbroken" if number == BROKEN else png(pixels_of(number))
                contents = {"png": picture, "txt": f"picture {number}".encode(), "json": facts.encode()}
                for extension, content in contents.items():
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        name = f"{len(shards):05d}.tar"
        store.write_bytes(store.join(folder, name), buffer.getvalue())
        shards.append({"name": name, "rows": len(numbers)})
    store.write_manifest(folder, {"kept": PICTURES, "encoding": "png", "shards": shards})


@pytest.fixture(scope="module")
def encoded(root: Path, tiny_base: str, ray_local: None) -> tuple[RunConfig, dict[str, Any]]:
    config = config_of(root, tiny_base)
    write_shards(config.stage_dir("ingest"))
    return config, latents.run(config)


def rows_of(config: RunConfig, manifest: dict[str, Any]) -> pa.Table:
    folder = Path(config.stage_dir("latents"))
    return pa.concat_tables(pq.read_table(folder / item["name"]) for item in manifest["files"])


def test_a_broken_picture_costs_one_row_and_is_counted(encoded: tuple[RunConfig, dict[str, Any]]):
    config, manifest = encoded
    assert manifest["rows"] == PICTURES - 1
    assert manifest["failed"] == {"undecodable": 1}
    expected = [f"{number:09d}" for number in range(PICTURES) if number != BROKEN]
    assert rows_of(config, manifest)["key"].to_pylist() == expected
    assert [item["rows"] for item in manifest["files"]] == [20, 20, 9]


def test_moments_are_those_of_a_direct_encode(encoded: tuple[RunConfig, dict[str, Any]], tiny_base: str):
    config, manifest = encoded
    table = rows_of(config, manifest)
    pipeline = load_pipeline(tiny_base)
    numbers = [0, 5, 36, 49]
    pixels = np.stack([pixels_of(number) for number in numbers])
    with torch.inference_mode():
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = pipeline.vae.encode(scaled).latent_dist
        expected = torch.cat([posterior.mean, posterior.logvar], 1).numpy()
        text, _ = pipeline.encode_prompt([f"picture {number}" for number in numbers], "cpu", 1, False)
        null, _ = pipeline.encode_prompt([""], "cpu", 1, False)
    places = [table["key"].to_pylist().index(f"{number:09d}") for number in numbers]
    # Half precision keeps 11 bits: half a unit in the last place, and the kernels' own rounding.
    tolerance: dict[str, Any] = {"rtol": 2**-10, "atol": 1e-4}
    np.testing.assert_allclose(schema.tensor(table, "moments")[places].astype(np.float32), expected, **tolerance)
    np.testing.assert_allclose(schema.tensor(table, "text")[places].astype(np.float32), text.numpy(), **tolerance)
    stored = load_file(Path(config.stage_dir("latents")) / schema.NULL_TEXT)["text"]
    np.testing.assert_allclose(stored.astype(np.float32), null[0].numpy(), **tolerance)
    assert manifest["scaling_factor"] == pipeline.vae.config.scaling_factor
    assert list(expected.shape[1:]) == [2 * manifest["latent_shape"][0], *manifest["latent_shape"][1:]]
    assert list(text.shape[1:]) == manifest["text_shape"]


def test_captions_sizes_and_crops_are_kept(encoded: tuple[RunConfig, dict[str, Any]]):
    table = rows_of(*encoded)
    assert table["caption"].to_pylist()[:3] == ["picture 0", "picture 1", "picture 2"]
    assert (schema.tensor(table, "original_size") == [100, 128]).all()
    assert (schema.tensor(table, "crop") == [0, 14, 100, 100]).all()


def test_two_actors_write_the_same_bytes(
    encoded: tuple[RunConfig, dict[str, Any]], tiny_base: str, tmp_path: Path, ray_local: None
):
    _, manifest = encoded
    config = config_of(tmp_path, tiny_base, "latents.actors=2")
    write_shards(config.stage_dir("ingest"))
    again = latents.run(config)
    assert again["files"] == manifest["files"]
    assert (again["vae"], again["text_encoder"]) == (manifest["vae"], manifest["text_encoder"])


def test_a_finished_folder_is_reused(encoded: tuple[RunConfig, dict[str, Any]]):
    config, manifest = encoded
    assert latents.run(config) == manifest


def test_token_ids_take_the_embeddings_place(root: Path, tiny_base: str, ray_local: None):
    config = config_of(root, tiny_base, "latents.cache_text=false")
    write_shards(config.stage_dir("ingest"))
    manifest = latents.run(config)
    ids = schema.tensor(rows_of(config, manifest), "text")
    assert ids.dtype == np.int32
    tokenizer = load_pipeline(tiny_base).tokenizer
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == "picture 0"
    assert manifest["text_shape"] == [tokenizer.model_max_length]


def test_a_cut_shard_names_itself(tiny_base: str, tmp_path: Path, ray_local: None):
    config = config_of(tmp_path, tiny_base)
    folder = config.stage_dir("ingest")
    write_shards(folder)
    path = Path(folder) / "00001.tar"
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(store.ArtifactError, match=r"00001\.tar"):
        latents.run(config)
    assert not store.is_complete(config.stage_dir("latents"))


def test_a_size_that_the_vae_cannot_take_names_the_knob(tiny_base: str, tmp_path: Path):
    config = config_of(tmp_path, tiny_base, "latents.image_size=65")
    write_shards(config.stage_dir("ingest"))
    with pytest.raises(ValueError, match=r"latents\.image_size=65 is not a multiple"):
        latents.run(config)


def test_without_ingest_there_is_nothing_to_encode(tiny_base: str, tmp_path: Path):
    with pytest.raises(store.ArtifactError, match="Run the stage that makes it first"):
        latents.run(config_of(tmp_path, tiny_base))
