"""A hostile web on loopback, names that resolve as the test says, and a socket that goes nowhere else.

``good.test`` stands for a public host: it resolves to a public address, which `dial` leads to this server. Every other
address that somebody tries to connect to is written down and refused, the server's own 127.0.0.1 among them: a hole
in the policy shows as a recorded attempt, not as traffic.
"""

from __future__ import annotations

import gzip
import io
import itertools
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.5"
NAMES = {
    "good.test": [PUBLIC],
    "private.test": [PRIVATE],
    "mixed.test": [PUBLIC, PRIVATE],
    "loopback.test": ["127.0.0.1"],
    "metadata.test": ["169.254.169.254"],
}
REBINDING = "rebinding.test"  # public at the first look, private from the second on


def resolve(folder: Path, host: str, port: int) -> list[str]:
    """Names from the table, numbers as the system reads them; nothing is asked of a name server."""
    if host == REBINDING:
        seen = folder / "rebinding"
        addresses = [PRIVATE] if seen.exists() else [PUBLIC]
        seen.touch()
    elif host in NAMES:
        addresses = NAMES[host]
    else:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(item[4][0]) for item in found]
    return addresses


def dial(folder: Path, server_port: int, address: str, port: int, timeout: float) -> socket.socket:
    """Connect to the server where the public address is meant; write down and refuse the rest."""
    if (address, port) != (PUBLIC, server_port):
        with (folder / "attempts").open("a") as record:
            record.write(f"{address} {port}\n")
        raise OSError(f"a test connects to {address} {port}")
    return socket.create_connection(("127.0.0.1", server_port), timeout)


def attempts(folder: Path) -> list[str]:
    """Addresses that were tried and should not have been."""
    path = folder / "attempts"
    return path.read_text().splitlines() if path.exists() else []


def picture(form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (80, 72), **options: Any) -> bytes:
    """An encoded picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB")
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def huge_png(side: int) -> bytes:
    """A valid PNG of a few bytes whose header claims ``side`` x ``side`` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("JPEG", exif=exif.tobytes())


def animated() -> bytes:
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    announced = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {announced}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _redirect(target: str) -> bytes:
    return _answer(b"", f"Location: {target}", status="302 Found")


def _endless(head: bytes, body: bytes) -> Iterator[bytes]:
    yield head
    yield from itertools.repeat(body)


def _drip(data: bytes) -> Iterator[bytes]:
    for number in range(len(data)):
        time.sleep(0.2)
        yield data[number : number + 1]


BODIES: dict[str, bytes] = {
    "png": _answer(picture()),
    "typed-wrongly": _answer(picture(), "Content-Type: text/html"),
    "cmyk": _answer(picture("JPEG", "CMYK")),
    "deep": _answer(picture("PNG", "I;16")),
    "rotated": _answer(rotated()),
    "palette": _answer(picture("PNG", "P")),
    "transparent": _answer(picture("PNG", "RGBA")),
    "animated": _answer(animated()),
    "dot": _answer(picture(size=(1, 1))),
    "huge": _answer(huge_png(60_000)),
    "large": _answer(b"", length=10**9),
    "gzip-bomb": _answer(gzip.compress(bytes(50_000_000)), "Content-Encoding: gzip"),
    "svg": _answer(b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "Content-Type: image/svg+xml"),
    "html": _answer(b"<!DOCTYPE html><html></html>", "Content-Type: image/png"),
    "cut-jpeg": _answer(picture("JPEG")[:900]),
    "cut-body": _answer(picture()[:900], length=5000),
    "nothing": _answer(b""),
    "silence": b"",
    "babble": b"this is no HTTP\r\n\r\n",
    "noai": _answer(picture(), "X-Robots-Tag: noai"),
    "noai-for-us": _answer(picture(), "X-Robots-Tag: img2dataset: noimageai"),
    "noai-for-others": _answer(picture(), "X-Robots-Tag: otherbot: noai"),
    "reserved": _answer(picture(), "TDM-Reservation: 1"),
    "missing": _answer(b"gone", status="404 Not Found"),
    "busy": _answer(b"later", status="503 Service Unavailable"),
    "to-picture": _redirect("/png"),
    "to-file": _redirect("file:///etc/passwd"),
    "to-ftp": _redirect("ftp://good.test/png"),
    "to-metadata": _redirect("http://169.254.169.254/latest/meta-data/"),
    "to-private-name": _redirect("http://private.test/png"),
    "to-userinfo": _redirect("http://good.test@127.0.0.1/png"),
    "to-itself": _redirect("/to-itself"),
}
STREAMS: dict[str, Callable[[], Iterator[bytes]]] = {
    "endless": lambda: _endless(b"HTTP/1.1 200 OK\r\n\r\n", bytes(65536)),
    "endless-header": lambda: _endless(b"HTTP/1.1 200 OK\r\n", b"X-More: of it\r\n"),
    "endless-redirect": lambda: _endless(b"HTTP/1.1 302 Found\r\nLocation: /png\r\n\r\n", bytes(65536)),
    "dripping": lambda: _drip(_answer(picture())),
    "dripping-body": lambda: itertools.chain([_answer(b"", length=5000)], _drip(bytes(5000))),
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer by the path, to the byte; the port of a redirect's target is this server's."""
        name, _, rest = self.path.partition("?")[0].strip("/").partition("/")
        if name == "hop":  # /hop/N leads on to /hop/N+1
            parts: Any = [_redirect(f"/hop/{int(rest) + 1}")]
        elif name == "again":  # the same name once more
            parts = [_redirect(f"http://{self.headers['Host']}/png")]
        elif name == "home":
            parts = [_redirect(f"http://127.0.0.1:{self.server.server_address[1]}/png")]
        else:
            parts = STREAMS[name]() if name in STREAMS else [BODIES[name]]
        with suppress(OSError):  # the client left, as it should
            for part in parts:
                self.wfile.write(part)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serve() -> Iterator[int]:
    """The port of the server, which runs until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
