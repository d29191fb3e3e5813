"""The real stage: Ray Data and an actor pool over shards on disk, against diffusers called directly."""

from __future__ import annotations

import json
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from smooth import stages, store
from smooth.cli import app
from smooth.config import RunConfig
from smooth.data import contact_sheet, latents, openmoji, parts, schema, verify
from smooth.data.dataset import LatentsDataset
from smooth.data.encoder import Encoder
from smooth.data.encoding import PartEncoder, Plan
from smooth.data.shards import Shard
from smooth.models.pipeline import load_pipeline
from smooth.train.text import embedder
from tests.shards import Member, png, sample, write_ingest

# Ray Data's own defaults set options that it warns about.
pytestmark = pytest.mark.filterwarnings(r"ignore:`\w+` is deprecated:DeprecationWarning:ray.data.context")

SHARDS = [range(30), range(30, 50), range(50, 70)]
BROKEN = 37  # its picture is not a picture
NUMBERS = [number for shard in SHARDS for number in shard if number != BROKEN]


def caption_of(number: int) -> str:
    return f"picture {number // 2}"


def pixels_of(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    drawing = openmoji.drawings()[number * 7]
    return openmoji.render(drawing, 64, openmoji.Style.draw(drawing.key, 0))


def samples(numbers: range) -> dict[str, Member]:
    pictures = {number: png(pixels_of(number)) for number in numbers} | {BROKEN: b"\x89PNG\r\n\x1a\nbroken"}
    return {f"{number:09d}": sample(pictures[number], caption_of(number)) for number in numbers}


def ingest(config: RunConfig, shards: int) -> None:
    write_ingest(config.stage_dir("ingest"), [samples(numbers) for numbers in SHARDS[:shards]], shuffled=True)


def config_of(root: str, base: str, *overrides: str) -> RunConfig:
    return RunConfig.load("tiny", [f"storage.root={root}", f"model.base={base}", "latents.batch_size=8", *overrides])


def contents(config: RunConfig) -> dict[str, bytes]:
    """All files of the latents but the manifest."""
    folder = Path(config.stage_dir("latents").removeprefix("file://"))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != store.MANIFEST}


def without_seconds(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name != "seconds"}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, tiny_base: str, ray_local: None) -> RunConfig:
    """Two shards, encoded by one actor, and then a third that ingest brought later. Storage is named by a URL."""
    config = config_of(f"file://{tmp_path_factory.mktemp('artifacts')}", tiny_base)
    ingest(config, 2)
    first = latents.run(config)
    assert first["rows"] == 49
    assert latents.run(config) == first
    written = {name: data for name, data in contents(config).items() if name.startswith("part-")}
    ingest(config, 3)
    assert stages.status("latents", config) == "to do"
    manifest = latents.run(config)
    assert manifest["files"][:2] == first["files"]
    assert {name: contents(config)[name] for name in written} == written
    assert stages.status("latents", config) == "complete"
    return config


@pytest.fixture(scope="module")
def manifest(encoded: RunConfig) -> dict[str, Any]:
    return store.read_manifest(encoded.stage_dir("latents"))


@pytest.fixture(scope="module")
def table(encoded: RunConfig, manifest: dict[str, Any]) -> pa.Table:
    folder = Path(encoded.stage_dir("latents").removeprefix("file://"))
    return pa.concat_tables(pq.read_table(folder / item["latents"][0]["name"]) for item in manifest["files"])


def test_every_picture_is_a_row_or_counted(table: pa.Table, manifest: dict[str, Any]):
    assert table["key"].to_pylist() == [f"{number:09d}" for number in NUMBERS]
    assert table["caption"].to_pylist() == [caption_of(number) for number in NUMBERS]
    assert (schema.tensor(table, "original_size") == [100, 128]).all()
    assert (schema.tensor(table, "crop") == [0, 14, 100, 100]).all()
    assert [item["rows"] for item in manifest["files"]] == [30, 19, 20]
    assert (manifest["rows"], manifest["texts"], manifest["failed"]) == (69, 35, {"undecodable": 1})
    # 8 x 16 x 16 numbers of moments a row, 24 x 192 of text for every second one, two bytes each; zstd saves some.
    assert manifest["bytes_per_row"]["moments"] == pytest.approx(4096, rel=0.15)
    assert manifest["bytes_per_row"]["text"] < 35 / 69 * 9216


def test_moments_and_texts_are_those_of_a_direct_encode(encoded: RunConfig, manifest: dict[str, Any], tiny_base: str):
    data = LatentsDataset(encoded.stage_dir("latents"))
    pipeline = load_pipeline(tiny_base)
    numbers = [0, 5, 36, 49, 69]
    pixels = np.stack([pixels_of(number) for number in numbers])
    with torch.inference_mode():
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = pipeline.vae.encode(scaled).latent_dist
        expected = torch.cat([posterior.mean, posterior.logvar], 1).numpy()
        text, _ = pipeline.encode_prompt([caption_of(number) for number in numbers], "cpu", 1, False)
        null, _ = pipeline.encode_prompt([""], "cpu", 1, False)
    rows = [data.row(NUMBERS.index(number)) for number in numbers]
    # Half precision keeps 11 bits: half a unit in the last place, and the kernels' own rounding.
    tolerance: dict[str, Any] = {"rtol": 2**-10, "atol": 1e-4}
    np.testing.assert_allclose(np.stack([row[0] for row in rows]).astype(np.float32), expected, **tolerance)
    np.testing.assert_allclose(np.stack([row[1] for row in rows]).astype(np.float32), text.numpy(), **tolerance)
    np.testing.assert_allclose(data.null_text.numpy(), null[0].numpy(), **tolerance)
    assert manifest["scaling_factor"] == pipeline.vae.config.scaling_factor


def test_another_data_set_of_the_same_shards_copies_their_parts(
    encoded: RunConfig, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(latents, "_encode", pytest.fail)
    other = config_of(encoded.storage.root, encoded.model.base, "ingest.limit=99")
    ingest(other, 3)
    again = latents.run(other)
    assert again["files"] == manifest["files"]
    assert contents(other) == {name: data for name, data in contents(encoded).items() if name != contact_sheet.NAME}
    # A folder is named by its inputs alone and holds no path: moved with its root, it loads.
    assert encoded.storage.root not in json.dumps(again)
    moved = Path(other.stage_dir("latents").removeprefix("file://"))
    shutil.copytree(moved, moved.parents[1] / "elsewhere")
    assert len(LatentsDataset(str(moved.parents[1] / "elsewhere"))) == manifest["rows"]
    shutil.rmtree(moved)


def _kill_an_actor(folder: Path, known: set[str], killed: list[int]) -> None:
    """Kill the first actor that begins to write a part."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if any(path.name.endswith(store.PARTIAL) and path.name not in known for path in folder.glob("part-*")):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # another that ended meanwhile
                    if "MapBatches(Worker)" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        return
        time.sleep(0.002)


def test_two_actors_a_cut_shard_and_a_killed_actor_give_the_same_files(
    encoded: RunConfig, manifest: dict[str, Any], tiny_base: str, tmp_path: Path
):
    config = config_of(str(tmp_path), tiny_base, "latents.actors=2")
    ingest(config, 3)
    cut = Path(config.stage_dir("ingest"), "00001.tar")
    whole = cut.read_bytes()
    cut.write_bytes(whole[:10_000])
    folder = Path(config.stage_dir("latents"))
    with pytest.raises(store.ArtifactError, match=r"1 of 3 shards can't be encoded: .*00001\.tar is not a whole shard"):
        latents.run(config)
    assert not store.is_complete(str(folder))
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert len([name for name in done if name.endswith(".json")]) == 2

    cut.write_bytes(whole)
    (folder / "part-0.16x16.parquet.1234abcd.partial").write_bytes(b"left by a writer that was killed")
    killed: list[int] = []
    killer = threading.Thread(
        target=_kill_an_actor, args=(folder, {path.name for path in folder.iterdir()}, killed), daemon=True
    )
    killer.start()
    again = latents.run(config)
    killer.join(timeout=5)
    assert len(killed) == 1
    assert without_seconds(again) == without_seconds(manifest)
    assert contents(config) == {name: data for name, data in contents(encoded).items() if name != contact_sheet.NAME}
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done


def test_a_flipped_byte_is_found_and_mended(encoded: RunConfig, manifest: dict[str, Any]):
    folder = Path(encoded.stage_dir("latents").removeprefix("file://"))
    command = ["-o", f"storage.root={encoded.storage.root}", "-o", "latents.batch_size=8"]
    command += ["-o", f"model.base={encoded.model.base}"]
    sound = CliRunner().invoke(app, ["latents", "verify", *command])
    assert sound.exit_code == 0, sound.stderr
    assert "3 parts with 69 rows are sound" in sound.stdout
    with Image.open(folder / contact_sheet.NAME) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (6 * 64, 6 * 64, 3)
    assert np.array_equal(pixels[:64, :64], pixels_of(0))

    before = contents(encoded)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    name = manifest["files"][1]["latents"][0]["name"]
    damaged = bytearray(before[name])
    damaged[len(damaged) // 2] ^= 4
    (folder / name).write_bytes(damaged)
    found = CliRunner().invoke(app, ["latents", "verify", *command])
    assert (found.exit_code, found.stderr) == (1, f"fault: {name} is not the file that was written\n")

    mended = CliRunner().invoke(app, ["latents", "repair", *command])
    assert mended.exit_code == 0, mended.stderr
    assert "1 of 3 parts were encoded anew; 69 rows" in mended.stdout
    assert contents(encoded) == before
    assert without_seconds(store.read_manifest(str(folder))) == without_seconds(manifest)
    touched = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    part = manifest["files"][1]
    names = {file["name"] for file in parts.files_of(part)}
    assert touched == names | {parts.facts_name(part["part"]), schema.NULL_TEXT, store.MANIFEST}
    assert not verify.verify(str(folder)).faults


def test_token_ids_become_the_embeddings_that_would_have_been_cached(
    encoded: RunConfig, table: pa.Table, tiny_base: str, tmp_path: Path
):
    source = encoded.stage_dir("ingest")
    shard = Shard.of(store.read_manifest(source))[0]
    encoder = Encoder(tiny_base, None, cache_text=False, batch_size=8)
    null_text = encoder.texts([""])["text"]
    plan = Plan(source, str(tmp_path), "png", encoded.latents, (encoder.latent_shape(64, 64),), null_text.shape[1:])
    PartEncoder(plan, encoder)(shard, "ids", lambda *_: None)
    texts = pq.read_table(tmp_path / parts.texts_name("ids"))
    ids = schema.tensor(texts, "text")
    assert ids.dtype == np.int32
    tokenizer = load_pipeline(tiny_base).tokenizer
    assert tokenizer.decode(ids[3], skip_special_tokens=True).strip() == "picture 3"
    data = LatentsDataset(encoded.stage_dir("latents"))
    cached = torch.from_numpy(np.stack([data.row(2 * number)[1] for number in range(15)]))
    data.text_shape = ids.shape[1:]
    embed = embedder(data, encoder.pipeline.text_encoder, torch.device("cpu"))
    torch.testing.assert_close(embed(torch.from_numpy(ids).long()), cached.float(), rtol=2**-10, atol=1e-4)
    torch.testing.assert_close(embed(torch.from_numpy(null_text).long())[0], data.null_text, rtol=2**-10, atol=1e-4)


def test_pictures_of_several_aspects_are_encoded_checked_and_mended(tiny_base: str, tmp_path: Path, ray_local: None):
    config = config_of(
        str(tmp_path), tiny_base, "ingest.resize_mode=keep_ratio", "latents.buckets=[[64, 64], [48, 80], [80, 48]]"
    )
    shown = {
        number: pixels_of(number)[:, : 64 if number % 2 else 40] for number in range(12)
    }  # square, tall, none wide
    shard = {f"{number:09d}": sample(png(pixels), caption_of(number)) for number, pixels in shown.items()}
    write_ingest(config.stage_dir("ingest"), [shard])
    manifest = latents.run(config)
    (part,) = manifest["files"]
    assert [file["rows"] for file in part["latents"]] == [6, 0, 6]
    assert {name: count for name, count in manifest["summary"].items() if name.startswith("rows of")} == {
        "rows of 64x64": 6, "rows of 48x80": 0, "rows of 80x48": 6,
    }  # fmt: skip

    data = LatentsDataset(config.stage_dir("latents"))
    vae = load_pipeline(tiny_base).vae
    # Of 40 x 64 the largest box of 3 : 5 is 38 x 64.
    tall = Image.fromarray(shown[4]).resize((48, 80), Image.Resampling.LANCZOS, box=(1, 0, 39, 64))
    for row, picture in ((0, shown[1]), (8, np.asarray(tall))):
        with torch.inference_mode():
            scaled = torch.from_numpy(picture.copy())[None].permute(0, 3, 1, 2).float() / 127.5 - 1
            posterior = vae.encode(scaled).latent_dist
        expected = torch.cat([posterior.mean, posterior.logvar], 1)[0].numpy()
        np.testing.assert_allclose(data.row(row).moments.astype(np.float32), expected, rtol=2**-10, atol=1e-4)

    folder = Path(config.stage_dir("latents"))
    with Image.open(contact_sheet.write(config)[0]) as sheet:
        assert sheet.size == (6 * 64, 2 * 64 + 2 * 80)
    before = contents(config)
    damaged = bytearray(before[part["latents"][2]["name"]])
    damaged[len(damaged) // 2] ^= 4
    (folder / part["latents"][2]["name"]).write_bytes(damaged)
    found, _ = verify.repair(config)
    assert [fault.text for fault in found.faults] == [f"{part['latents'][2]['name']} is not the file that was written"]
    assert contents(config) == before
    assert not verify.verify(str(folder)).faults
    changed = {**manifest, "files": [{**part, "latents": part["latents"][:2]}]}
    store.write_manifest(str(folder), changed)
    said = {fault.text for fault in verify.verify(str(folder)).faults}
    assert "2 files of rows, the manifest has 3 sizes of latents" in said


def test_a_size_that_the_vae_cannot_take_names_the_knob(tiny_base: str, tmp_path: Path):
    config = config_of(str(tmp_path), tiny_base, "latents.image_size=65")
    ingest(config, 1)
    with pytest.raises(ValueError, match=r"65 pixels are not a multiple of .* use 64 in latents\.image_size"):
        latents.run(config)


def test_a_batch_without_room_names_the_knob(tiny_base: str, monkeypatch: pytest.MonkeyPatch):
    encoder = Encoder(tiny_base, None, cache_text=True, batch_size=3)

    def no_room(_: torch.Tensor) -> None:  # in the place of a GPU that is full
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder.pipeline.vae, "encode", no_room)
    with pytest.raises(MemoryError, match=r"latents\.batch_size=3 pictures of 64 x 48 pixels on cpu"):
        encoder.moments(np.zeros((2, 64, 48, 3), np.uint8))


def test_without_ingest_there_is_nothing_to_encode(tiny_base: str, tmp_path: Path):
    with pytest.raises(store.ArtifactError, match="Run the stage that makes it first"):
        latents.run(config_of(str(tmp_path), tiny_base))
