"""The loader: memory of its index, its throughput against what training consumes, how long steps wait, its start.

``OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_loader``. A million rows in the shapes of the built-in base: 4,000
parts, of which the disk holds 8 that the manifest lists again and again. Training is the stage's own loop on DeepSpeed,
a thread a worker, without Ray; its pauses, where it would write checkpoints, time the loader alone.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
import timeit
import tracemalloc
from collections.abc import Mapping
from contextlib import ExitStack, closing, redirect_stdout
from pathlib import Path
from typing import Any

from smooth.config import RunConfig, resolve_model
from smooth.data.dataset import WINDOW_ROWS, LatentsDataset
from smooth.data.loader import LatentLoader
from tests.benchmarks.results import Result, report
from tests.synthetic import repeat_parts, shapes_of, write_latents

PARTS, PART_ROWS, TIMES = 8, 250, 500


def loader(dataset: LatentsDataset, batch: int) -> LatentLoader:
    return LatentLoader(dataset, seed=0, timesteps=1000, caption_dropout=0.1, global_batch_size=batch)


def index_memory(folder: str, batch: int) -> float:
    """Peak in MB of opening the data set and going through an epoch's order, without a row."""
    tracemalloc.start()
    with closing(LatentsDataset(folder)) as dataset:
        (order,) = loader(dataset, batch).orders
        index = 0
        while index < len(dataset):
            index = order.window(index).end
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def start(folder: str, place: float, batch: int) -> float:
    """Seconds from nothing to the first global batch, which lies at ``place`` of the epoch.

    By timeit, which holds garbage collection: that of a process full of libraries takes as long as a start, now and
    then.
    """

    def begin() -> None:
        dataset = stack.enter_context(closing(LatentsDataset(folder)))
        loader(dataset, batch).micro_batches(int(place * len(dataset)), batch, 0, 1)

    with ExitStack() as stack:  # which waits for what is read ahead, out of the time
        return timeit.timeit(begin, number=1)


def throughput(folder: str, batch: int) -> float:
    """Samples/s over two windows, the first of which is read on the way."""
    with closing(LatentsDataset(folder)) as dataset:
        samples = loader(dataset, batch)
        started = time.perf_counter()
        for seen in range(0, 2 * WINDOW_ROWS, batch):
            samples.micro_batches(seen, batch, 0, 1)
        return 2 * WINDOW_ROWS / (time.perf_counter() - started)


def _train(config: RunConfig, folder: str, root: str) -> None:
    """One rank of a training, and where it is the only one, the loader's rounds in its pauses."""
    import torch
    from torch import distributed as dist

    from smooth.train.job import Place, TrainJob
    from smooth.train.loop import Training

    rank, ranks = dist.get_rank(), dist.get_world_size()
    steps: list[Mapping[str, float]] = []
    rates: list[float] = []

    def log(metrics: Mapping[str, float], _step: int) -> None:
        steps.append(metrics)

    def pause(*_: Any) -> None:
        if ranks == 1:
            rates.append(throughput(folder, config.train.global_batch_size))

    place = Place(rank, ranks, torch.device("cpu"), log, lambda *_: None, pause)
    with redirect_stdout(io.StringIO()):  # its progress
        Training(TrainJob(config, resolve_model(config.model.base), folder, root), place).run(None)
    if rank == 0:
        Path(root, "measured.json").write_text(json.dumps({"steps": steps, "rates": rates}))


def train(folder: str, preset: str, workers: int, rounds: int, steps: int) -> tuple[float, float, list[float]]:
    """Samples/s of a training (median of its steps), its share of time without data, and the loader's rates."""
    from tests.ranks import start

    overrides = [f"train.workers={workers}", f"train.steps={rounds * steps}", f"train.checkpoint_every={steps}"]
    config = RunConfig.load(preset, [*overrides, "train.validate_every=1000000", "train.max_failures=0"])
    with tempfile.TemporaryDirectory() as root:
        start(workers, _train, config, folder, root)
        measured = json.loads(Path(root, "measured.json").read_text())
    speeds = [step["samples_per_second"] for step in measured["steps"]]
    seconds = sum(config.train.global_batch_size / speed for speed in speeds)
    waited = sum(step["seconds/data_wait"] for step in measured["steps"])
    return statistics.median(speeds), waited / seconds, measured["rates"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of training, a round")
    parser.add_argument("--preset", default="tiny")
    args = parser.parse_args()
    config = RunConfig.load(args.preset)
    batch = config.train.global_batch_size
    with tempfile.TemporaryDirectory() as root:
        folder = str(Path(root, "latents"))
        write_latents(folder, rows=PARTS * PART_ROWS, files=PARTS, **shapes_of(config.model.base))
        repeat_parts(folder, TIMES)
        memory = index_memory(folder, batch)
        starts: dict[float, list[float]] = {place: [] for place in (0.0, 0.99)}
        for _ in range(5 * args.rounds):
            for place, seconds in starts.items():
                seconds.append(start(folder, place, batch))
        speed, _, rates = train(folder, args.preset, 1, args.rounds, args.steps)
        _, share, _ = train(folder, args.preset, 2, args.rounds, args.steps)
    first, last = (statistics.median(seconds) for seconds in starts.values())
    rate = statistics.median(rates)
    report(
        "loader",
        [
            Result("index of a million rows, peak", memory, "MB", "<= 200"),
            Result("loader", rate, "samples/s"),
            Result("training, one worker", speed, "samples/s"),
            Result("loader / training", rate / speed, "", ">= 20"),
            Result("data wait, two workers", share, "of the step time", "<= 0.02"),
            Result("start at 0 %", first, "s"),
            Result("start at 99 % / at 0 %", last / first, "", "<= 1.2"),
        ],
    )


if __name__ == "__main__":
    main()
