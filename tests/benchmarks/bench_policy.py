"""The policy on a synthetic LAION list, duplicates included: rows a second on one core, memory at 0.5 and 5 M rows."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smooth.config import IngestConfig
from smooth.data.selection import Selection, select
from tests.benchmarks.results import Result, report

BLOCK = 250_000  # rows generated at once


def config_of(path: Path) -> IngestConfig:
    """Every threshold that the preset of SD 1.5 sets."""
    return IngestConfig(
        url_list=str(path), min_size=512, min_aesthetic=6.5, max_punsafe=0.5, max_pwatermark=0.8, max_caption=500
    )


def write_list(path: Path, rows: int) -> None:
    """A list in LAION's columns, its values spread so that each rule refuses a part; a tenth is listed twice."""
    draw = np.random.default_rng(0)
    writer = None
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        numbers = np.arange(start, start + count)
        numbers[draw.random(count) < 0.1] //= 2
        table = pa.table(
            {
                "URL": [f"https://img{number % 977}.example.org/{number:x}/picture.jpg" for number in numbers.tolist()],
                "TEXT": [f"a picture of thing {number % 99991} beside another one" for number in numbers.tolist()],
                "WIDTH": draw.integers(256, 2048, count, dtype=np.int32),
                "HEIGHT": draw.integers(256, 2048, count, dtype=np.int32),
                "similarity": draw.uniform(0.1, 0.5, count),
                "punsafe": draw.uniform(0, 0.6, count),
                "pwatermark": draw.uniform(0, 1, count),
                "AESTHETIC_SCORE": draw.uniform(4, 9, count),
                "hash": numbers * 7919 - (numbers % 50 == 0) * 7919,  # each fiftieth has its predecessor's
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def measure(path: Path) -> tuple[float, float, Selection]:
    """Seconds, peak resident MiB and result of a child that selects from the list on one core."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_select, (path,))


def _select(path: Path) -> tuple[float, float, Selection]:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    started = time.process_time()
    found = select(str(path), config_of(path), f"{path}.allowed")
    elapsed = time.process_time() - started
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    return elapsed, peak, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[int, list[tuple[float, float, Selection]]] = {}
        for rows in (given.rows // 10, given.rows):
            path = Path(folder, f"{rows}.parquet")
            write_list(path, rows)
            runs[rows] = [measure(path) for _ in range(given.rounds)]
            print(rows, runs[rows][0][2])
    small, large = (statistics.median(run[1] for run in runs[rows]) for rows in runs)
    found = runs[given.rows][0][2]
    speed = given.rows / statistics.median(run[0] for run in runs[given.rows])
    report(
        "policy",
        [
            Result("rows a second of CPU", speed, "rows/s", ">= 1e6"),
            Result(f"peak memory, {given.rows // 10:,} rows", small, "MiB"),
            Result(f"peak memory, {given.rows:,} rows", large, "MiB"),
            Result("memory of ten times the rows", large / small, "x", "<= 1.15"),
            Result("rows not accounted for", found.rows - found.allowed - found.refused.total(), "rows", "<= 0"),
        ],
    )


if __name__ == "__main__":
    main()
