"""How much of a host one process takes: so many requests at once, and none while it has asked for quiet."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class Hosts:
    """The state of each host that is asked; one object serves all threads of a process."""

    def __init__(self, connections: int) -> None:
        """``connections`` to one host at once."""
        self._connections = connections
        self._lock = threading.Lock()
        self._slots: dict[str, threading.BoundedSemaphore] = {}
        self._quiet: dict[str, float] = {}

    @contextmanager
    def slot(self, host: str, timeout_s: float | None = None) -> Iterator[None]:
        """Hold one of the host's connections; waits while all are taken.

        Raises:
            TimeoutError: none was free in time.
        """
        with self._lock:
            slots = self._slots.setdefault(host, threading.BoundedSemaphore(self._connections))
        if not slots.acquire(timeout=timeout_s):
            raise TimeoutError("timed out: too many requests wait for this host")
        try:
            yield
        finally:
            slots.release()

    def keep_quiet(self, host: str, seconds: float) -> None:
        """Ask nothing of the host for so long."""
        with self._lock:
            self._quiet[host] = max(self._quiet.get(host, 0.0), time.monotonic() + seconds)

    def wait(self, host: str) -> None:
        """Wait until the host may be asked; a little longer each, or all would come back at once."""
        with self._lock:
            left = self._quiet.get(host, 0.0) - time.monotonic()
        if left > 0:
            time.sleep(left * random.uniform(1.0, 1.2))


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None where it says nothing useful."""
    if value is None:
        return None
    if value.strip().isdecimal() and value.isascii():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
