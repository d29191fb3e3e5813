"""Ten kills of the latents stage, each at a random moment: what comes out is what comes out undisturbed.

Minutes; not part of the suite. ``python -m pytest tests/chaos/test_latents.py``
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from smooth import store
from smooth.config import RunConfig
from smooth.data import openmoji
from tests.shards import png, sample, write_ingest

KILLS = 10
SHARDS, PICTURES = 12, 400
LONGEST_SECONDS = 600


def overrides(root: Path) -> list[str]:
    return [f"storage.root={root}", "latents.actors=2", "latents.batch_size=16"]


def start(root: Path, log: Path) -> subprocess.Popen[bytes]:
    """The stage as a process with a Ray of its own, in a process group of its own."""
    options = [part for override in overrides(root) for part in ("-o", override)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("ab") as handle:
        return subprocess.Popen(
            [sys.executable, "-m", "smooth", "stage", "latents", *options],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def actors_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "MapBatches(Worker)" in " ".join(child.cmdline())]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the driver as a crash does; its Ray dies with it, and nothing of it works on beside the next one."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()


def write_shards(folder: str) -> None:
    draws = random.Random(0)
    drawings = [draws.choice(openmoji.drawings()) for _ in range(SHARDS * PICTURES)]
    pictures = [
        sample(png(openmoji.render(drawing, 64, openmoji.Style.draw(drawing.key, number))), f"picture {number % 97}")
        for number, drawing in enumerate(drawings)
    ]
    pictures[777] = sample(b"no picture", "broken")
    keyed = [(f"{number:09d}", picture) for number, picture in enumerate(pictures)]
    write_ingest(folder, [dict(keyed[first : first + PICTURES]) for first in range(0, len(keyed), PICTURES)])


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != store.MANIFEST}


def without_seconds(folder: str) -> dict[str, Any]:
    return {name: value for name, value in store.read_manifest(folder).items() if name != "seconds"}


@pytest.mark.timeout(2 * LONGEST_SECONDS * KILLS)
def test_ten_kills_end_in_the_same_latents(tmp_path: Path) -> None:
    roots = tmp_path / "undisturbed", tmp_path / "killed"
    folders = []
    for root in roots:
        config = RunConfig.load("tiny", overrides(root))
        write_shards(config.stage_dir("ingest"))
        folders.append(config.stage_dir("latents"))
    log = tmp_path / "log"
    assert start(roots[0], log).wait(LONGEST_SECONDS) == 0, log.read_text()[-4000:]

    draws = random.Random(os.environ.get("SMOOTH_TEST_SEED", "latents"))
    killed: list[str] = []
    process = start(roots[1], log)
    folder = Path(folders[1])
    while len(killed) < KILLS:
        # Half of the kills meet an actor at its work, half the driver, at any moment between start and end.
        victim = draws.choice(["actor", "driver"])
        deadline = time.monotonic() + LONGEST_SECONDS
        while victim == "actor" and not any(folder.glob("*.partial")) and time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 3 if victim == "actor" else 20))
        if process.poll() is not None:  # it has finished before its time: take something away and go on
            assert process.returncode == 0, log.read_text()[-4000:]
            lose_a_part(folder, draws)
            process = start(roots[1], log)
            continue
        if victim == "driver":
            end(process)
            process = start(roots[1], log)
        elif actors := actors_of(process):
            draws.choice(actors).send_signal(signal.SIGKILL)
        else:
            continue
        killed.append(f"{victim} with {len(list(folder.glob('part-*.json')))} of {SHARDS} parts")
    assert process.wait(LONGEST_SECONDS) == 0, log.read_text()[-4000:]
    print("\n".join(killed))
    assert contents(folders[1]) == contents(folders[0])
    assert without_seconds(folders[1]) == without_seconds(folders[0])


def lose_a_part(folder: Path, draws: random.Random) -> None:
    """The stage is done with a part less."""
    (folder / store.MANIFEST).unlink()
    for facts in draws.sample(sorted(folder.glob("part-*.json")), SHARDS // 2):
        facts.unlink()
