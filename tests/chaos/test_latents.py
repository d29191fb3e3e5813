"""Ten kills of the latents stage at random moments, drivers and actors alike; see tests/chaos/test_ingest.py."""

from __future__ import annotations

import random
import shutil
from itertools import count
from pathlib import Path

import psutil
import pytest

from smooth import store
from smooth.config import RunConfig
from smooth.data import openmoji
from tests.kills import Stage, survive
from tests.shards import png, sample, write_ingest

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(3600)]

SHARDS, PICTURES = 6, 120
ACTOR = "ray::MapWorker(MapBatches(Worker))"  # how Ray names the process of one


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draws = random.Random(0)
    drawings = [draws.choice(openmoji.drawings()) for _ in range(SHARDS * PICTURES)]
    pictures = [
        sample(png(openmoji.render(drawing, 64, openmoji.Style.draw(drawing.key, number))), f"picture {number % 97}")
        for number, drawing in enumerate(drawings)
    ]
    pictures[333] = sample(b"no picture", "broken")
    keyed = [(f"{number:09d}", picture) for number, picture in enumerate(pictures)]
    folder = tmp_path_factory.mktemp("shards") / "ingest"
    write_ingest(str(folder), [dict(keyed[first : first + PICTURES]) for first in range(0, len(keyed), PICTURES)])
    return folder


def encoding() -> list[psutil.Process]:
    """The actors of this test's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(ACTOR):
                found.append(process)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def test_ten_kills_end_in_the_undisturbed_result(shards: Path, tmp_path: Path) -> None:
    number = count()

    def root() -> list[str]:
        overrides = [f"storage.root={tmp_path}/{next(number)}", "latents.actors=2", "latents.batch_size=16"]
        shutil.copytree(shards, RunConfig.load("tiny", overrides).stage_dir("ingest"))
        return overrides

    def result(overrides: list[str]) -> object:
        folder = Path(RunConfig.load("tiny", overrides).stage_dir("latents"))
        manifest = store.read_manifest(str(folder)) | {"seconds": 0}
        assert sum(file["rows"] for file in manifest["files"]) == SHARDS * PICTURES - 1
        return manifest, {path.name: path.read_bytes() for path in folder.iterdir() if path.name != store.MANIFEST}

    survive(Stage("latents", tmp_path / "log", encoding), root, result)
