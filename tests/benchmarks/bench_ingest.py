"""Ingest over loopback against bare img2dataset with the same settings: pictures a second, guard and books included.

Bare is what img2dataset's own ``multiprocessing`` distributor does: its reader's shards through a pool of downloaders.
Both sides have their processes up and img2dataset imported before the clock starts; rounds alternate.
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
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


def compare(rows: int, rounds: int, processes: int, root: Path) -> dict[str, list[float]]:
    """Seconds of each round, ``ours`` and ``bare``; a first round of each is not counted."""
    ours_end, theirs = SPAWN.Pipe()
    server = SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    port = ours_end.recv()
    listed = root / "list.parquet"
    urls = [f"http://127.0.0.1:{port}/{number}" for number in range(rows)]
    pq.write_table(pa.table({"URL": urls, "TEXT": [f"picture {number}" for number in range(rows)]}), listed)
    free = [f"ingest.{name}=null" for name in ("min_aesthetic", "max_punsafe", "max_pwatermark", "min_similarity")]
    overrides = [
        *free, "ingest.demo_web=null", f"ingest.url_list={listed}", f'ingest.allowed_hosts=["127.0.0.1:{port}"]',
        "ingest.min_size=0", "ingest.image_size=256", "ingest.encode_format=jpg", "ingest.retries=0",
        "ingest.timeout_s=60",  # a busy machine costs time, not rows
        f"ingest.shard_size={-(-rows // (4 * processes))}", f"ingest.processes={processes}", "ingest.threads=8",
    ]  # fmt: skip
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    with SPAWN.Pool(processes) as pool:
        assert len(set(pool.starmap(_warm, [()] * processes, chunksize=1))) == processes
        for number in range(rounds + 1):
            for side in sorted(seconds, reverse=bool(number % 2)):
                config = RunConfig.load("tiny", [f"storage.root={root}/{side}-{number}", *overrides])
                if side == "ours":
                    seconds[side].append(ours(config))
                else:
                    seconds[side].append(bare(config.ingest, listed, root / f"{side}-{number}", pool))
    ours_end.close()
    server.join()
    return {side: values[1:] for side, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = compare(given.rows, given.rounds, given.processes, Path(folder))
    rates = {side: given.rows / statistics.median(values) for side, values in seconds.items()}
    report(
        "ingest",
        [
            Result("ingest", rates["ours"], "pictures/s"),
            Result("bare img2dataset", rates["bare"], "pictures/s"),
            Result("ingest against bare", rates["ours"] / rates["bare"], "x", ">= 0.9"),
        ],
    )


if __name__ == "__main__":
    main()
