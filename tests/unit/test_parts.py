"""One shard becomes one part: with arithmetic in the place of networks, on a local disk and in memory."""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from smooth import store
from smooth.config import LatentsConfig
from smooth.data import parts, schema
from smooth.data.encoding import PartEncoder, Plan
from smooth.data.shards import Shard
from tests.shards import Member, png, sample, write_ingest

LATENT, TEXT = (2, 8, 8), (3, 4)
ROWS = "part-p.8x8.parquet"


class Arithmetic:
    """The mean of 4 x 4 pixels as latents, a caption's length as its text. Remembers how often it was asked."""

    batch_size = 4

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.captions: list[str] = []

    def moments(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        self.batches.append(len(pixels))
        count, height, width, _ = pixels.shape
        means = pixels[..., :2].reshape(count, height // 4, 4, width // 4, 4, 2).mean((2, 4)).transpose(0, 3, 1, 2)
        means = np.where(means == 255, np.inf, means)  # a white picture is one that the VAE can't bear
        return np.concatenate([means, means], axis=1).astype(np.float16)

    def texts(self, captions: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        self.captions += captions
        lengths = np.array([np.nan if caption == "nan" else len(caption) for caption in captions])
        return {"text": np.broadcast_to(lengths[:, None, None], (len(captions), *TEXT)).astype(np.float16)}


def pixels_of(number: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 250, (32, 32, 3), np.uint8)


def samples(count: int, **changed: Member) -> dict[str, Member]:
    return {f"k{n:03d}": sample(png(pixels_of(n)), "x" * (n % 5), (32, 32)) for n in range(count)} | changed


def encode(
    root: str, shard: Mapping[str, Member], part: str = "p", **settings: Any
) -> tuple[parts.Facts, Arithmetic, list[tuple[int, int]]]:
    (listed,) = Shard.of(write_ingest(f"{root}/ingest", [shard], shuffled=True))
    config = LatentsConfig(image_size=32, **settings)
    shapes = tuple((2, height // 4, width // 4) for height, width in config.sizes)
    plan = Plan(f"{root}/ingest", f"{root}/a", "png", config, shapes, TEXT)
    networks, told = Arithmetic(), []
    PartEncoder(plan, networks)(listed, part, lambda *counts: told.append(counts))
    return parts.finished(plan.folder, [part])[part], networks, told


def read(root: str, facts: parts.Facts) -> tuple[Any, Any]:
    rows, texts = (
        pq.read_table(io.BytesIO(store.read_bytes(f"{root}/a/{file['name']}"))) for file in parts.files_of(facts)
    )
    return rows, texts


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_rows_are_in_key_order_and_share_texts(tmp_path: Path, scheme: str) -> None:
    root = f"{scheme}://{tmp_path}"
    facts, networks, told = encode(root, samples(22))
    rows, texts = read(root, facts)
    assert rows["key"].to_pylist() == [f"k{n:03d}" for n in range(22)]
    assert texts["caption"].to_pylist() == ["x" * n for n in range(5)]
    assert networks.captions == texts["caption"].to_pylist()
    assert rows["text_row"].to_pylist() == [n % 5 for n in range(22)]
    moments = schema.tensor(rows, "moments")
    assert np.array_equal(moments[7], networks.moments(pixels_of(7)[None])[0])
    assert facts["pictures"] == facts["rows"] == 22
    assert facts["texts"]["rows"] == 5
    assert sum(facts["stored"].values()) == sum(file["bytes"] for file in parts.files_of(facts))
    for file in parts.files_of(facts):
        assert store.sha256(f"{root}/a/{file['name']}") == file["sha256"]
    assert told[-1] == (22, 0)


def test_a_picture_that_fails_costs_its_rows_and_is_counted(tmp_path: Path) -> None:
    white = png(np.full((32, 32, 3), 255, np.uint8))
    broken = {
        "k003": sample(b"no picture", "a"),
        "k004": {**sample(png(pixels_of(4)), "a"), "json": b"{"},
        "k005": sample(white, "only with the white one"),
        "k006": sample(png(pixels_of(6)), "nan"),
        "k018": sample(png(pixels_of(18)), "nan"),
    }
    facts, networks, told = encode(str(tmp_path), samples(22, **broken), flip=True)
    rows, texts = read(str(tmp_path), facts)
    kept = [f"k{n:03d}" for n in range(22) if f"k{n:03d}" not in broken]
    assert rows["key"].to_pylist() == [key for key in kept for _ in range(2)]
    assert rows["flipped"].to_pylist() == [False, True] * len(kept)
    assert facts["failed"] == {"broken_record": 1, "non_finite": 3, "undecodable": 1}
    assert (facts["pictures"], told[-1]) == (22, (22, 5))
    # Those that can't be decoded fill no place in a batch, and only whole pictures' captions are encoded, once.
    assert networks.batches == [4] * 10
    assert networks.captions == ["", "x", "xx", "nan", "xxx", "xxxx"]
    assert texts["caption"].to_pylist() == ["", "x", "xx", "xxx", "xxxx"]
    captions = [texts["caption"][row].as_py() for row in rows["text_row"].to_pylist()]
    assert captions == rows["caption"].to_pylist()


def test_a_part_is_the_same_bytes_again_and_no_more_than_a_row_group_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP", 10)
    facts, _, told = encode(f"{tmp_path}/1", samples(25), crop="random", crops=3)
    again, *_ = encode(f"{tmp_path}/2", samples(25), crop="random", crops=3)
    assert facts == again
    assert told[0][0] < 10  # something was written, and told, long before the last picture was seen
    footer = pq.read_metadata(f"{tmp_path}/1/a/{facts['latents'][0]['name']}")
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [10] * 7 + [5]


def test_each_aspect_has_its_rows_in_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP", 6)
    wide = {f"k{n:03d}": sample(png(np.tile(pixels_of(n), (1, 2, 1))), "wide", (32, 64)) for n in range(1, 40, 2)}
    facts, networks, told = encode(str(tmp_path), samples(40) | wide, buckets=((32, 32), (32, 64), (64, 32)))
    assert [file["name"] for file in facts["latents"]] == [f"part-p.{size}.parquet" for size in ("8x8", "8x16", "16x8")]
    assert (facts["rows"], [file["rows"] for file in facts["latents"]]) == (40, [20, 20, 0])
    assert told[-1] == (40, 0)
    assert networks.batches == [4] * 10
    texts = pq.read_table(f"{tmp_path}/a/{facts['texts']['name']}")["caption"].to_pylist()
    for file, first, repeated in zip(facts["latents"], (0, 1), (1, 2), strict=False):
        rows = pq.read_table(f"{tmp_path}/a/{file['name']}")
        numbers = range(first, 40, 2)
        assert rows["key"].to_pylist() == [f"k{n:03d}" for n in numbers]
        assert [texts[row] for row in rows["text_row"].to_pylist()] == rows["caption"].to_pylist()
        pixels = np.stack([np.tile(pixels_of(n), (1, repeated, 1)) for n in numbers])
        assert np.array_equal(schema.tensor(rows, "moments"), networks.moments(pixels))
        footer = pq.read_metadata(f"{tmp_path}/a/{file['name']}")
        assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [6, 6, 6, 2]


def test_a_shard_without_one_good_picture_is_a_part_without_rows(tmp_path: Path) -> None:
    facts, *_ = encode(str(tmp_path), {"a": sample(b"none", "a")})
    assert (facts["rows"], facts["texts"]["rows"], facts["failed"]) == (0, 0, {"undecodable": 1})


def names_of(part: str) -> list[str]:
    return [f"part-{part}.8x8.parquet", parts.texts_name(part), parts.facts_name(part)]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The system refuses to write a file beyond ``size`` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("group", [parts.ROW_GROUP, 6])  # where the last rows are written, or any in the background
def test_a_full_disk_leaves_nothing_that_looks_finished(
    tmp_path: Path, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP", group)
    encode(str(tmp_path), samples(22), part="first")
    with pytest.raises(OSError, match="File too large"), file_size_limit(30_000):
        encode(str(tmp_path), samples(60), part="second")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(names_of("first"))


@pytest.mark.parametrize("number", [0, 1, 5, 10])  # of the table that is lost: 9 row groups and 2 of texts
def test_one_table_that_is_not_written_is_an_error_though_all_others_are(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP", 6)
    add, calls = parts.TableWriter.add, count()

    def lossy(writer: parts.TableWriter, columns: dict[str, Any]) -> None:
        if next(calls) == number:
            raise OSError("lost")
        add(writer, columns)

    monkeypatch.setattr(parts.TableWriter, "add", lossy)
    with pytest.raises(OSError, match="lost"):
        encode(str(tmp_path), samples(50, k049=sample(png(pixels_of(49)), "a caption of its own")))
    assert not list((tmp_path / "a").iterdir())


def test_a_part_is_finished_only_with_all_its_files_whole(tmp_path: Path) -> None:
    root, folder = str(tmp_path), f"{tmp_path}/a"
    assert parts.finished(folder, ["p"]) == {}
    for number, damage in enumerate(
        [
            lambda path: (path / ROWS).unlink(),
            lambda path: (path / parts.texts_name("p")).write_bytes(b"short"),
            lambda path: (path / parts.facts_name("p")).write_text("{half"),
            lambda path: (path / parts.facts_name("p")).unlink(),
        ]
    ):
        encode(root, samples(3))
        assert set(parts.finished(folder, ["p", "q"])) == {"p"}, number
        damage(tmp_path / "a")
        assert parts.finished(folder, ["p"]) == {}, number


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_parts_of_siblings_are_copied_unless_they_are_damaged(tmp_path: Path, scheme: str) -> None:
    root = f"{scheme}://{tmp_path}"
    good, *_ = encode(root, samples(5), part="good")
    bad, *_ = encode(root, samples(5), part="bad")
    good_rows, bad_rows = (facts["latents"][0]["name"] for facts in (good, bad))
    data = bytearray(store.read_bytes(f"{root}/a/{bad_rows}"))
    data[len(data) // 2] ^= 1
    store.write_bytes(f"{root}/a/{bad_rows}", bytes(data))
    assert parts.copy_from_siblings(f"{root}/b", {"good", "bad", "unknown"}) == {"good": good}
    assert parts.finished(f"{root}/b", ["good", "bad"]) == {"good": good}
    assert store.read_bytes(f"{root}/b/{good_rows}") == store.read_bytes(f"{root}/a/{good_rows}")
    if scheme == "file":  # one more name, not one more file
        assert (tmp_path / "b" / good_rows).stat().st_nlink == 2
    assert parts.copy_from_siblings(f"{root}/b", {"good"}) == {"good": good}  # again, over what is there


def test_what_killed_writers_left_is_removed_and_the_rest_stays(tmp_path: Path) -> None:
    facts, *_ = encode(str(tmp_path), samples(3))
    encode(str(tmp_path), samples(3), part="old")
    folder = tmp_path / "a"
    for name in ("part-p.8x8.parquet.12ab34cd.partial", "contact_sheet.png"):
        (folder / name).write_bytes(b"1")
    parts.remove_others(str(folder), [facts])
    assert {path.name for path in folder.iterdir()} == {*names_of("p"), "contact_sheet.png"}
    parts.remove(str(folder), "p")
    assert [path.name for path in folder.iterdir()] == ["contact_sheet.png"]
