"""The train stage on hosts of the test's own, whose workers and driver can be killed, and what has become of it."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from smooth.config import RunConfig
from smooth.models import WEIGHTS_NAME
from tests import history, small
from tests.hosts import Cluster
from tests.synthetic import shapes_of, write_latents

GLOBAL = 4  # samples a step
WORKER = "RayTrainWorker"  # in the name of the process of one


class TrainStage:
    """The stage with its driver on host 0, as Ray's job API starts it on a head."""

    def __init__(self, cluster: Cluster, overrides: list[str], log: Path) -> None:
        self.cluster = cluster
        self.folder = Path(RunConfig.load("tiny", overrides).stage_dir("train"))
        self.log = log
        options = [part for change in overrides for part in ("-o", change)]
        self._command = (sys.executable, "-m", "smooth", "stage", "train", *options)

    def start(self) -> None:
        """Run it, from its last checkpoint where there is one."""
        with self.log.open("a") as output:
            self.driver = self.cluster.start(0, self._command, output)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait while the stage runs; a Ray node that ends is started again."""
        while not condition():
            assert self.driver.poll() in (None, 0), self.said()[-6000:]
            assert not self.ended or condition(), "the stage ended before what was waited for"
            self.cluster.tend()
            time.sleep(0.1)

    @property
    def ended(self) -> bool:
        return self.driver.poll() == 0

    @property
    def step(self) -> int:
        """The last step that rank 0 has done, of which it may do some again."""
        return max((line["step"] for line in chain.from_iterable(history.lines(self.folder)[:1])), default=0)

    @property
    def workers(self) -> int:
        """How many workers did the step before."""
        done = list(chain.from_iterable(history.lines(self.folder)[:1]))
        return done[-1]["workers"] if done else 0

    def said(self) -> str:
        return self.log.read_text()

    def kill_a_worker(self, draws: random.Random) -> None:
        """Kill one, and wait for one where there is none yet."""
        self.wait_for(lambda: bool(self._workers()))
        draws.choice(self._workers()).kill()

    def kill_driver(self) -> None:
        self.driver.kill()
        self.driver.wait()

    def _workers(self) -> list[psutil.Process]:
        found = []
        for host in range(len(self.cluster.names)):
            for process in self.cluster.processes(host):
                try:
                    if WORKER in " ".join(process.cmdline()):
                        found.append(process)
                except psutil.Error:  # it ended meanwhile
                    continue
        return sorted(found, key=lambda process: process.pid)


def prepare(root: Path, base: str, rows: int, *changes: str) -> list[str]:
    """Latents of so many rows for a training of two workers, under a root of its own; return the stage's overrides."""
    overrides = [
        f"model.base={base}", f"storage.root={root}", f"train.global_batch_size={GLOBAL}", "train.micro_batch_size=1",
        "train.workers=2", "train.ema_decay=0.99", "train.caption_dropout=0.3", "train.validate_every=10000",
        "train.log_samples=true", "train.istd_every=null", *changes,
    ]  # fmt: skip
    latents = RunConfig.load("tiny", overrides).stage_dir("latents")
    write_latents(latents, rows=rows, **(shapes_of(base) | {"latent_shape": small.LATENT_SHAPE}))
    return overrides


def assert_same_bits(stage: TrainStage, other: TrainStage) -> None:
    """The result, and the weights, moments, average and target that one could go on from."""
    ends = [_end_of(one.folder) for one in (stage, other)]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def distance(stage: TrainStage, other: TrainStage) -> float:
    """The largest relative L2 distance of the two trainings' results, weights, moments, averages and targets."""
    ends = [_end_of(one.folder) for one in (stage, other)]
    assert ends[0].keys() == ends[1].keys()
    kinds = {name.partition("/")[0] for name in ends[0]}
    return max(_distance(*({n: t for n, t in end.items() if n.startswith(kind)} for end in ends)) for kind in kinds)


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    left, right = (torch.cat([end[name].double().flatten() for name in sorted(end)]) for end in (one, other))
    return float((left - right).norm() / right.norm())


def _end_of(folder: Path) -> dict[str, torch.Tensor]:
    last = max((folder / "checkpoints").glob("step-*"))
    state = json.loads((last / "state.json").read_text())
    result = {f"result/{name}": tensor for name, tensor in load_file(folder / WEIGHTS_NAME).items()}
    return (
        result
        | load_file(last / "training.safetensors")
        | {"target": torch.tensor(state["variation"]["target"], dtype=torch.float64)}
    )
