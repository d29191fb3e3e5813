"""Reference pictures of a folder of one's own, and COCO's captions as prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smooth.config import ConfigError, RunConfig
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.real import decoded, folder_pictures
from tests.shards import png, sample, write_ingest
from tests.synthetic import write_latents

COUNT = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one grey each, in folders, beside what is none."""
    for index in range(COUNT):
        path = tmp_path / f"{index % 2}" / f"{index}.{'jpg' if index % 3 else 'PNG'}"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40 + index, 50), (30 * index,) * 3).save(path)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_a_random_subset_by_the_seed_comes_in_batches(folder: Path) -> None:
    def greys(count: int, seed: int) -> list[int]:
        batches = [decoded(batch, 16) for batch in folder_pictures(str(folder), count, seed, batch=2)]
        assert [len(batch) for batch in batches[:-1]] == [2] * (len(batches) - 1)
        assert all(batch.shape[1:] == (16, 16, 3) and batch.dtype == np.uint8 for batch in batches)
        return [round(float(picture.mean()) / 30) for batch in batches for picture in batch]

    assert sorted(greys(100, 0)) == list(range(COUNT))
    assert len(set(greys(3, 0))) == 3
    assert greys(3, 0) == greys(3, 0)
    assert any(greys(3, seed) != greys(3, 0) for seed in range(1, 5))


def test_what_is_no_folder_of_pictures_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(ConfigError, match=r"evaluate\.reference=.*one holds 0 pictures"):
        next(folder_pictures(str(tmp_path / "one"), 3, 0, 2))
    (folder / "0" / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ConfigError, match=r"broken\.png is no picture that can be read"):
        [decoded(batch, 16) for batch in folder_pictures(str(folder), 100, 0, 2)]


def test_cocos_captions_are_prompts_and_the_reference_is_stamped(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions_val2014.json"
    captions.write_text(json.dumps({"annotations": [{"caption": f" caption {index}\n"} for index in range(9)]}))
    changes = [f"storage.root={tmp_path}", "evaluate.prompts=3", "evaluate.pictures=5"]
    own = RunConfig.load("tiny", changes)
    coco = RunConfig.load("tiny", [*changes, f"evaluate.prompts_file={captions}", f"evaluate.reference={folder}",
                                   f"evaluate.picture_prompts_file={captions}"])  # fmt: skip
    write_latents(own.stage_dir("latents"), rows=12)
    found, plain = Protocol.of(coco), Protocol.of(own)
    assert found.prompts == ("caption 0", "caption 1", "caption 2")
    assert len(set(found.picture_prompts)) == 5
    assert set(found.picture_prompts) <= {f"caption {index}" for index in range(9)}
    assert found.picture_stamp["reference"] == found.reference != plain.picture_stamp["reference"]
    assert coco.fingerprint("evaluate") != own.fingerprint("evaluate")
    Image.new("RGB", (40, 50)).save(folder / "another.png")
    assert Protocol.of(coco).reference != found.reference

    embedded = RunConfig.load("tiny", [*changes, f"evaluate.clip={folder}"])
    before = embedded.fingerprint("evaluate")
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert embedded.fingerprint("evaluate") != before

    captions.write_text("{}")
    with pytest.raises(ConfigError, match=r"evaluate\.prompts_file=.* is no COCO captions file"):
        Protocol.of(coco)


def test_a_retried_ingest_has_other_reference_pictures_though_its_prompts_are_the_same(tmp_path: Path) -> None:
    """They come from files, and so don't tell."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a hat\na cat\na dog\n")
    files = [f"evaluate.{key}={prompts}" for key in ("prompts_file", "picture_prompts_file")]
    config = RunConfig.load("tiny", [f"storage.root={tmp_path}", "evaluate.prompts=3", "evaluate.pictures=5", *files])
    write_latents(config.stage_dir("latents"), rows=12)
    alone = Protocol.of(config)
    grey = {f"{number:09d}": sample(png(np.full((64, 64, 3), number, np.uint8)), "a hat") for number in range(9)}
    write_ingest(config.stage_dir("ingest"), [dict(list(grey.items())[:8])])
    before = Protocol.of(config)
    write_ingest(config.stage_dir("ingest"), [grey])
    after = Protocol.of(config)
    assert before.picture_prompts == after.picture_prompts
    for name in ("references", "fingerprint", "picture_stamp", "reconstruction_stamp"):
        assert len({str(getattr(protocol, name)) for protocol in (alone, before, after)}) == 3
