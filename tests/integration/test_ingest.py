"""The real stage: img2dataset over HTTP from a web that is bad in known ways."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from smooth import store
from smooth.config import RunConfig
from smooth.data import ingest, web

pytestmark = pytest.mark.usefixtures("ray_local")


def config_of(root: Path, *overrides: str) -> RunConfig:
    return RunConfig.load(
        "tiny",
        [
            f"storage.root={root}",
            "ingest.demo_web.pictures=80",
            "ingest.demo_web.fault_share=0.4",
            "ingest.shard_size=40",
            *overrides,
        ],
    )


def url_list(root: Path, path: Path | str, *overrides: str) -> RunConfig:
    return config_of(root, "ingest.demo_web=null", f"ingest.url_list={path}", *overrides)


@pytest.fixture(scope="module")
def done(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any]]:
    config = config_of(tmp_path_factory.mktemp("artifacts"))
    return config, ingest.run(config)


def test_every_planted_fault_is_counted_under_its_own_cause(done: tuple[RunConfig, dict[str, Any]]):
    config, manifest = done
    assert config.ingest.demo_web is not None
    planted = Counter(row.fault for row in web.plan(config.ingest.demo_web) if row.fault is not None)
    assert len(planted) == len(web.FAULTS)
    assert manifest["refused"] | manifest["failed"] == planted
    assert manifest["rows"] == 80 + planted.total()
    assert manifest["kept"] == 80
    assert manifest["rows"] == manifest["kept"] + sum(manifest["refused"].values()) + sum(manifest["failed"].values())


def test_the_shards_hold_what_the_manifest_says(done: tuple[RunConfig, dict[str, Any]]):
    config, manifest = done
    folder = Path(config.stage_dir("ingest"))
    assert sum(shard["rows"] for shard in manifest["shards"]) == manifest["kept"]
    keys = set()
    for shard in manifest["shards"]:
        path = folder / shard["name"]
        assert path.stat().st_size == shard["bytes"]
        assert store.sha256(str(path)) == shard["sha256"]
        with tarfile.open(path) as archive:
            for member in archive:
                keys.add(member.name)
                content = archive.extractfile(member)
                assert content is not None
                if member.name.endswith(".png"):
                    assert Image.open(io.BytesIO(content.read())).size == (64, 64)
    assert len(keys) == 3 * manifest["kept"]
    assert sorted(path.name for path in folder.iterdir() if path.name == ingest.LIST or path.is_dir()) == []


def test_a_picture_keeps_its_caption(done: tuple[RunConfig, dict[str, Any]]):
    config, _ = done
    assert config.ingest.demo_web is not None
    with tarfile.open(Path(config.stage_dir("ingest")) / "00000.tar") as archive:
        member = next(item for item in archive if item.name.endswith(".json"))
        facts = json.load(archive.extractfile(member))  # type: ignore[arg-type]
        caption = archive.extractfile(member.name.replace(".json", ".txt")).read().decode()  # type: ignore[union-attr]
        pixels = Image.open(archive.extractfile(member.name.replace(".json", ".png")))  # type: ignore[arg-type]
        stored = np.asarray(pixels, np.float32)
    path = "/" + facts["url"].split("/", 3)[3]
    row = next(row for row in web.plan(config.ingest.demo_web) if row.path == path)
    assert caption == facts["caption"] == row.caption
    served = Image.open(io.BytesIO(web.picture(*_parts(path)))).convert("RGB")
    expected = np.asarray(served.resize((64, 64), Image.Resampling.BOX), np.float32)
    assert np.abs(stored - expected).mean() < 4


def _parts(path: str) -> tuple[str, int, str]:
    stem, extension = path.split("/")[-1].split(".")
    key, size = stem.rsplit("-", 1)
    return key, int(size), extension


def test_a_second_run_fetches_nothing(done: tuple[RunConfig, dict[str, Any]]):
    config, manifest = done
    before = {path: path.stat().st_mtime_ns for path in Path(config.stage_dir("ingest")).iterdir()}
    assert ingest.run(config) == manifest
    assert before == {path: path.stat().st_mtime_ns for path in Path(config.stage_dir("ingest")).iterdir()}


def test_after_a_crash_only_missing_shards_are_fetched_and_come_out_the_same(done: tuple[RunConfig, dict[str, Any]]):
    config, manifest = done
    folder = Path(config.stage_dir("ingest"))
    tables = {path: path.read_bytes() for path in folder.glob("*.parquet")}
    (folder / store.MANIFEST).unlink()
    (folder / "00001_stats.json").unlink()
    (folder / "00001.tar").write_bytes(b"half")
    kept_before = (folder / "00000.tar").stat().st_mtime_ns
    again = ingest.run(config)
    assert (folder / "00000.tar").stat().st_mtime_ns == kept_before
    assert again | {"seconds": 0} == manifest | {"seconds": 0}
    assert {path: path.read_bytes() for path in tables} == tables


def test_a_list_without_a_needed_column_is_refused_before_any_packet(tmp_path: Path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"URL": ["http://127.0.0.1:9/a.png"], "TEXT": ["a cat"]}), path)
    config = url_list(tmp_path / "artifacts", path)
    with pytest.raises(ValueError, match="WIDTH, HEIGHT"):
        ingest.run(config)
    assert not store.is_complete(config.stage_dir("ingest"))


def test_a_list_that_is_not_parquet_says_so(tmp_path: Path):
    path = tmp_path / "list.parquet"
    path.write_text("URL,TEXT\n")
    with pytest.raises(ValueError, match="not a readable Parquet list"):
        ingest.run(url_list(tmp_path / "artifacts", path))


def test_a_policy_that_refuses_everything_fails_with_the_counts(tmp_path: Path):
    with pytest.raises(ingest.IngestError, match=r"refuses all 133 rows .*min_aesthetic"):
        ingest.run(config_of(tmp_path, "ingest.min_aesthetic=9"))


def test_a_web_that_is_down_fails_with_the_cause(tmp_path: Path):
    path = tmp_path / "list.parquet"
    # Port 9 (discard) of loopback: nobody listens.
    pq.write_table(
        pa.table({"URL": [f"http://127.0.0.1:9/{name}.png" for name in "abc"], "TEXT": ["a", "b", "c"]}), path
    )
    free = [f"ingest.{name}=null" for name in ("min_aesthetic", "max_punsafe", "max_pwatermark", "min_similarity")]
    listed = [str(path), "ingest.min_size=0", *free]
    config = url_list(tmp_path / "artifacts", *listed, 'ingest.allowed_hosts=["127.0.0.1:9"]')
    with pytest.raises(ingest.IngestError, match="not one of 3 allowed rows gave a picture: unreachable 3"):
        ingest.run(config)
    with pytest.raises(ingest.IngestError, match=r"forbidden_address 3.*ingest\.allowed_hosts"):
        ingest.run(url_list(tmp_path / "artifacts", *listed))
    assert not store.is_complete(config.stage_dir("ingest"))
