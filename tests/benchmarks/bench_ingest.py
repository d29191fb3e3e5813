"""Ingest over loopback against bare img2dataset with the same settings: pictures a second, guard and books included.

Bare is what img2dataset's own ``multiprocessing`` distributor does: its reader's shards through a pool of downloaders.
Both sides have their processes up and img2dataset imported before the clock starts; rounds alternate. CPU time is told,
too: server and downloaders share the machine's cores, and other work spoils it less than the clock's time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from smooth.config import IngestConfig, RunConfig
from smooth.data import ingest
from tests.benchmarks.results import Result, report

# For all processes here: albumentations, which img2dataset imports, asks the network for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
SPAWN = multiprocessing.get_context("spawn")
BODIES = 64  # different pictures
SIDE = 320
LIST = "list.parquet"


class _Handler(BaseHTTPRequestHandler):
    bodies: list[bytes]

    def do_GET(self) -> None:
        body = self.bodies[int(self.path.strip("/")) % BODIES]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _serve(port: Connection) -> None:
    """Serve photograph-like JPEGs, made once, until the parent ends."""
    draw = np.random.default_rng(0)
    _Handler.bodies = []
    for _ in range(BODIES):
        coarse = draw.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        _Handler.bodies.append(buffer.getvalue())
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port.send(server.server_port)
    with contextlib.suppress(EOFError):
        port.recv()


class Round(NamedTuple):
    """What one run of one side took."""

    seconds: float
    cpu_seconds: float


def cpu_seconds(among: Callable[[int], bool]) -> float:
    """CPU time so far of this process, and of its children of these ids with all that is below them, ended or not."""
    own = psutil.Process()
    total, waiting = 0.0, [own]
    while waiting:
        process = waiting.pop()
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # user and system, its own and that of children that ended
            waiting += [child for child in process.children() if process != own or among(child.pid)]
    return total


def ours(config: RunConfig) -> float:
    """Seconds of the whole stage: policy, pictures, books."""
    started = time.perf_counter()
    manifest = ingest.run(config)
    assert manifest["kept"] == manifest["rows"]
    return time.perf_counter() - started


def bare(config: IngestConfig, url_list: Path, folder: Path, pool: Pool) -> float:
    """Seconds of img2dataset's parts as its own distributor runs them."""
    from img2dataset.downloader import Downloader
    from img2dataset.reader import Reader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    (folder / "_tmp").mkdir(parents=True)
    started = time.perf_counter()
    reader = Reader(
        str(url_list), "parquet", "URL", "TEXT", None, None, [], config.shard_size, set(), str(folder / "_tmp")
    )
    resizer = Resizer(config.image_size, "center_crop", False, encode_format=config.encode_format, encode_quality=95)
    downloader = Downloader(
        WebDatasetSampleWriter, resizer, config.threads, True, False, str(folder), reader.column_list,
        config.timeout_s, config.shard_size, 5, "sha256", None, config.encode_format, config.retries, None, None,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert all(succeeded for succeeded, _ in pool.imap_unordered(downloader, reader))
    return time.perf_counter() - started


def _warm() -> int:
    import img2dataset  # noqa: F401

    time.sleep(1)  # so that each process of the pool takes one
    return os.getpid()


def compare(rows: int, rounds: int, processes: int, root: Path) -> dict[str, list[Round]]:
    """Each round of ``ours`` and ``bare``; a first round of each is not counted."""
    ours_end, theirs = SPAWN.Pipe()
    server = SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    overrides = _overrides(root, rows, processes, ours_end.recv())
    found: dict[str, list[Round]] = {"ours": [], "bare": []}
    with SPAWN.Pool(processes) as pool:
        pooled = set(pool.starmap(_warm, [()] * processes, chunksize=1))
        assert len(pooled) == processes
        of_side = {"ours": lambda pid: pid not in {server.pid, *pooled}, "bare": lambda pid: pid in pooled}
        for number in range(rounds + 1):
            for side in sorted(found, reverse=bool(number % 2)):
                config = RunConfig.load("tiny", [f"storage.root={root}/{side}-{number}", *overrides])
                before = cpu_seconds(of_side[side])
                if side == "ours":
                    seconds = ours(config)
                else:
                    seconds = bare(config.ingest, root / LIST, root / f"{side}-{number}", pool)
                found[side].append(Round(seconds, cpu_seconds(of_side[side]) - before))
    ours_end.close()
    server.join()
    return {side: values[1:] for side, values in found.items()}


def _overrides(root: Path, rows: int, processes: int, port: int) -> list[str]:
    """Write the list and say how it is fetched."""
    urls = [f"http://127.0.0.1:{port}/{number}" for number in range(rows)]
    pq.write_table(pa.table({"URL": urls, "TEXT": [f"picture {number}" for number in range(rows)]}), root / LIST)
    free = [f"ingest.{name}=null" for name in ("min_aesthetic", "max_punsafe", "max_pwatermark", "min_similarity")]
    return [
        *free, "ingest.demo_web=null", f"ingest.url_list={root / LIST}", f'ingest.allowed_hosts=["127.0.0.1:{port}"]',
        "ingest.min_size=0", "ingest.image_size=256", "ingest.encode_format=jpg", "ingest.retries=0",
        "ingest.timeout_s=60",  # a busy machine costs time, not rows
        f"ingest.shard_size={-(-rows // (4 * processes))}", f"ingest.processes={processes}", "ingest.threads=8",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(given.rows, given.rounds, given.processes, Path(folder))
    rates = {side: [given.rows / one.seconds for one in rounds] for side, rounds in found.items()}
    cpu = {side: [one.cpu_seconds / given.rows * 1000 for one in rounds] for side, rounds in found.items()}
    for side in found:
        print(f"{side}, pictures/s of each round: {' '.join(f'{rate:.0f}' for rate in rates[side])}")
        print(f"{side}, CPU s/1,000 pictures of each round: {' '.join(f'{seconds:.2f}' for seconds in cpu[side])}")
    ours, bare = statistics.median(rates["ours"]), statistics.median(rates["bare"])
    report(
        "ingest",
        [
            Result("ingest", ours, "pictures/s"),
            Result("bare img2dataset", bare, "pictures/s"),
            Result("ingest against bare", ours / bare, "x", ">= 0.9"),
            Result("ingest: slowest round against fastest", min(rates["ours"]) / max(rates["ours"]), "x"),
            Result("bare: slowest round against fastest", min(rates["bare"]) / max(rates["bare"]), "x"),
            Result("ingest: CPU time", statistics.median(cpu["ours"]), "s/1,000 pictures"),
            Result("bare: CPU time", statistics.median(cpu["bare"]), "s/1,000 pictures"),
        ],
    )


if __name__ == "__main__":
    main()
