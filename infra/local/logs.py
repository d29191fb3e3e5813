"""``python infra/local/logs.py FILE``: keep what comes by standard input in FILE, and no more of it than fits.

Each service writes to a pipe into a process of this program, so the disk is bounded whatever a service prints. It needs
nothing but the standard library, for there is one of it a service.
"""

from __future__ import annotations

import logging
import signal
import sys
from logging.handlers import RotatingFileHandler

MAX_BYTES = 10_000_000
OLD_FILES = 3
LINE_BYTES = 1 << 16


def keep(path: str, *, max_bytes: int = MAX_BYTES) -> None:
    """Copy lines from standard input to ``path`` until nobody is left who could write."""
    handler = RotatingFileHandler(path, maxBytes=max_bytes, backupCount=OLD_FILES, encoding="utf-8", errors="replace")
    for line in iter(lambda: sys.stdin.buffer.readline(LINE_BYTES), b""):
        handler.emit(logging.makeLogRecord({"msg": line.decode(errors="replace").removesuffix("\n")}))
    handler.close()


if __name__ == "__main__":
    # The last words of a service that is being stopped are wanted, too: it ends when the service has ended.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep(sys.argv[1])
