"""Training on three hosts through ten strikes: ``python -m pytest tests/chaos/test_train.py -s`` (2 x 12 minutes).

At random steps a worker is killed (5 times), the driver (twice), a Ray node (once), a host's cable is pulled for half a
minute and the disk of the checkpoints is filled. It must end in the bits of a training that nobody disturbed.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests import history, hosts, small
from tests.kills import SEED
from tests.stages import GLOBAL, TrainStage, assert_same_bits, prepare

pytestmark = [hosts.needed, pytest.mark.timeout(3600)]

STEPS, EVERY, ROWS = 300, 20, 70  # 17 epochs and a piece; 15 checkpoints
STRIKES = [*["worker"] * 5, *["driver"] * 2, "node", "cut", "full"]
CUT_S = 30.0
DISK_MB = 64


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own in ``folder``."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def strike(what: str, stage: TrainStage, disk: Path, draws: random.Random) -> None:
    """Do it, and put right what an operator or a supervisor would."""
    match what:
        case "worker":
            stage.kill_a_worker(draws)
        case "driver":
            stage.kill_driver()
            stage.start()
        case "node":
            stage.cluster.kill_node(draws.choice((1, 2)))
        case "cut":
            host = draws.choice((1, 2))
            stage.cluster.pull(host)
            time.sleep(CUT_S)
            stage.cluster.plug(host)
        case "full":
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            assert psutil.disk_usage(str(disk)).free == 0
            stage.wait_for(lambda: "no space left for" in stage.said())
            filler.unlink()
            stage.wait_for(lambda: "there is space again for" in stage.said())


def settings_of(disk: Path, base: str, name: str, asynchronous: bool) -> list[str]:
    checkpoints = f"train.checkpoint_every={EVERY}", f"train.async_checkpoints={asynchronous}"
    changes = f"train.steps={STEPS}", "train.max_failures=20", "train.learning_rate=1e-3"
    return prepare(disk / name, base, ROWS, *changes, *checkpoints)


@pytest.mark.parametrize(
    ("asynchronous", "at_most"), [(False, EVERY), (True, 2 * EVERY - 1)], ids=["waited-for", "uploaded-meanwhile"]
)
def test_ten_strikes_end_in_the_undisturbed_weights(tmp_path: Path, asynchronous: bool, at_most: int) -> None:
    draws = random.Random(SEED)
    base = small.write_pipeline(tmp_path / "base")
    settings = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "OMP_NUM_THREADS": "1"}
    with small_disk(tmp_path / "disk") as disk, hosts.connected(3, **settings) as cluster:
        cluster.start_nodes()
        calm = TrainStage(cluster, settings_of(disk, base, "calm", asynchronous), tmp_path / "calm.log")
        begun = time.monotonic()
        calm.start()
        calm.wait_for(lambda: calm.ended)
        calm_s = time.monotonic() - begun

        stage = TrainStage(cluster, settings_of(disk, base, "struck", asynchronous), tmp_path / "struck.log")
        begun = time.monotonic()
        stage.start()
        strikes = draws.sample(STRIKES, len(STRIKES))
        steps = sorted(draws.sample(range(1, STEPS - EVERY), len(STRIKES)))
        for what, step in zip(strikes, steps, strict=True):
            stage.wait_for(lambda step=step: stage.step >= step)
            time.sleep(draws.uniform(0, 2))
            print(f"step {stage.step}: {what}", flush=True)
            strike(what, stage, disk, draws)
        stage.wait_for(lambda: stage.ended)
        struck_s = time.monotonic() - begun

        history.check(stage.folder, STEPS, GLOBAL, ROWS)
        assert_same_bits(stage, calm)
        lost = [restart.lost for restart in history.restarts(stage.folder)]
        print(f"seed {SEED}: {STEPS} steps in {struck_s:.0f} s, undisturbed {calm_s:.0f} s; {len(lost)} restarts, "
              f"lost steps {lost}")  # fmt: skip
        assert max(lost) <= at_most
