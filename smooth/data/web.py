"""A web to download from: captioned OpenMoji pictures over HTTP on loopback, bad where the web is bad.

The list decides everything and the server is stateless: a path such as ``/picture/1F600-128.jpg``
names drawing, size and format, ``/timeout/1F600-128.jpg`` the same with a fault. All rows are a
function of the config, so a test can compare what ingest counted with what was planted.
"""

from __future__ import annotations

import hashlib
import io
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, get_args

from smooth.config import DemoWebConfig
from smooth.data import guard, openmoji

NAME = "openmoji.test"  # in the list, so that its URLs are the same wherever and whenever it is served
LOOPBACK = "127.0.0.1"
SOURCE = "OpenMoji, https://openmoji.org"
LICENCE = "CC BY-SA 4.0"
SIZES = (64, 96, 128, 192, 256)
FORMATS = {"jpg": ("JPEG", "image/jpeg"), "png": ("PNG", "image/png"), "webp": ("WEBP", "image/webp")}
QUALITY = 92  # of JPEG and WebP
TINY = 16  # pixels of a picture whose row claims more

# A fault is named as the rule or cause that must catch it.
FetchFault = Literal[
    "http_404", "http_500", "timeout", "not_an_image", "truncated", "cut_connection", "empty", "too_small"
]
ListFault = Literal["min_size", "max_punsafe", "max_pwatermark", "min_aesthetic", "min_similarity"]
Fault = FetchFault | ListFault
FAULTS: tuple[Fault, ...] = (*get_args(FetchFault), *get_args(ListFault))
GOOD = "picture"

_HTML = b"<!DOCTYPE html><html><title>Moved</title><body>This picture has moved.</body></html>"


@dataclass(frozen=True)
class Row:
    """One row of the list; the fields are LAION's columns, and ``fault`` what is wrong with it."""

    path: str
    caption: str
    width: int
    height: int
    similarity: float
    punsafe: float
    pwatermark: float
    aesthetic: float
    hash: int
    fault: Fault | None


def plan(config: DemoWebConfig) -> list[Row]:
    """All rows of the list, in its order: the good ones and, mixed in, the bad ones on top.

    ``fault_share`` is the bad rows' share of the whole list; every kind of fault gets its equal
    part (one more for the first kinds where it does not divide).
    """
    rng = random.Random(config.seed)
    shuffled = list(openmoji.drawings())
    rng.shuffle(shuffled)
    good = shuffled[: config.pictures]
    bad = round(len(good) * config.fault_share / (1 - config.fault_share))
    faults: list[Fault | None] = [None] * len(good) + [FAULTS[i % len(FAULTS)] for i in range(bad)]
    subjects = good + [rng.choice(good) for _ in range(bad)]
    rows = [_row(drawing, fault, rng) for drawing, fault in zip(subjects, faults, strict=True)]
    rng.shuffle(rows)
    return rows


def _row(drawing: openmoji.Drawing, fault: Fault | None, rng: random.Random) -> Row:
    size = rng.choice(SIZES)
    extension = rng.choice(tuple(FORMATS))
    folder = fault if fault in get_args(FetchFault) else GOOD
    path = f"/{folder}/{drawing.key}-{size}.{extension}"
    claimed = TINY if fault == "min_size" else size
    return Row(
        path=path,
        caption=drawing.caption,
        width=claimed,
        height=claimed,
        similarity=round(rng.uniform(-0.1, 0.15) if fault == "min_similarity" else rng.uniform(0.25, 0.4), 4),
        punsafe=round(rng.uniform(0.8, 1.0) if fault == "max_punsafe" else rng.uniform(0.0, 0.3), 4),
        pwatermark=round(rng.uniform(0.9, 1.0) if fault == "max_pwatermark" else rng.uniform(0.0, 0.6), 4),
        aesthetic=round(rng.uniform(2.0, 4.0) if fault == "min_aesthetic" else rng.uniform(5.0, 7.5), 3),
        hash=int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little", signed=True),
        fault=fault,
    )


def picture(key: str, size: int, extension: str) -> bytes:
    """Render one drawing in its first style and encode it.

    Raises:
        KeyError: no such drawing or format.
    """
    from PIL import Image

    encoder = FORMATS[extension][0]
    pixels = openmoji.render(_by_key()[key], size, openmoji.Style.draw(key, 0))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=encoder, quality=QUALITY)
    return buffer.getvalue()


@cache
def _by_key() -> dict[str, openmoji.Drawing]:
    return {drawing.key: drawing for drawing in openmoji.drawings()}


@dataclass(frozen=True)
class Web:
    """A running web: its address and what it lists."""

    url: str
    config: DemoWebConfig

    @property
    def host(self) -> str:
        """``host:port``, as its URLs spell it."""
        return self.url.removeprefix("http://")

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return int(self.url.rpartition(":")[2])

    @cached_property
    def rows(self) -> list[Row]:
        """The list's rows."""
        return plan(self.config)

    @property
    def planted(self) -> dict[str, int]:
        """How many rows of each fault the list holds."""
        return dict(Counter(row.fault for row in self.rows if row.fault is not None))

    def write_list(self, path: str, base: str | None = None) -> None:
        """Write the list as Parquet with LAION's columns to any fsspec path; its URLs begin with ``base`` or `url`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from smooth import store

        columns: dict[str, Any] = {
            "URL": [(base or self.url) + row.path for row in self.rows],
            "TEXT": [row.caption for row in self.rows],
            "WIDTH": pa.array([row.width for row in self.rows], pa.int32()),
            "HEIGHT": pa.array([row.height for row in self.rows], pa.int32()),
            "similarity": [row.similarity for row in self.rows],
            "punsafe": [row.punsafe for row in self.rows],
            "pwatermark": [row.pwatermark for row in self.rows],
            "AESTHETIC_SCORE": [row.aesthetic for row in self.rows],
            "hash": pa.array([row.hash for row in self.rows], pa.int64()),
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        store.write_bytes(path, buffer.getvalue())


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name; `NAME` is on loopback."""
    return [LOOPBACK] if (host, port) == (NAME, 80) else guard.resolve(host, port)


def dial(own_port: int, address: str, port: int, timeout: float) -> socket.socket:
    """Connect to a numeric address; what `NAME` resolves to leads to ``own_port``."""
    return guard.dial(address, own_port if (address, port) == (LOOPBACK, 80) else port, timeout)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # many connections open at once

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.closing = threading.Event()  # releases the requests that hang on purpose
        _by_key()  # once, before threads ask for it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that gave up on a hanging request is what was planned."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Serve ``/FOLDER/KEY-SIZE.EXTENSION``."""
        try:
            folder, name = self.path.strip("/").split("/")
            stem, extension = name.rsplit(".", 1)
            key, size = stem.rsplit("-", 1)
            body = picture(key, TINY if folder == "too_small" else int(size), extension)
        except (ValueError, KeyError):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._answer(folder, body, FORMATS[extension][1])

    def _answer(self, folder: str, body: bytes, content_type: str) -> None:
        if folder == "http_404":
            self.send_error(HTTPStatus.NOT_FOUND)
        elif folder == "http_500":
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
        elif folder == "timeout":
            self.server.closing.wait()
        elif folder == "not_an_image":
            self._send(_HTML, "text/html")
        elif folder == "empty":
            self._send(b"", content_type)
        elif folder == "truncated":
            self._send(body[: len(body) // 2], content_type)
        elif folder == "cut_connection":
            self._send(body[: len(body) // 2], content_type, announced=len(body))
        else:
            self._send(body, content_type)

    def _send(self, body: bytes, content_type: str, announced: int | None = None) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Thousands of requests are no news."""


@contextmanager
def serve(config: DemoWebConfig) -> Iterator[Web]:
    """Serve the web on a free loopback port until the block ends."""
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, name="demo-web", daemon=True)
    thread.start()
    try:
        yield Web(f"http://{LOOPBACK}:{server.server_port}", config)
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
