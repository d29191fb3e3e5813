"""How far the encoding of all shards is, and its progress lines."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smooth import progress

PROGRESS_LINES = 40
QUIET_SECONDS = 60.0
POLL_SECONDS = 1.0

Total = tuple[int, int]  # pictures done, failed among them


class Tally:
    """Counts by part, so that one that is begun anew counts anew. An actor, told by those that encode."""

    def __init__(self) -> None:
        self._parts: dict[str, Total] = {}
        self._begun: Counter[str] = Counter()

    def begin(self, part: str) -> int:
        """A part is begun; return for the how manieth time."""
        self._begun[part] += 1
        return self._begun[part]

    def put(self, part: str, done: int, failed: int) -> None:
        """So much of a part is done."""
        self._parts[part] = done, failed

    def total(self) -> Total:
        """So much of all parts is done."""
        return sum(done for done, _ in self._parts.values()), sum(failed for _, failed in self._parts.values())


@contextmanager
def reported(read: Callable[[], Total], before: int, total: int) -> Iterator[None]:
    """Print progress lines while the block runs; ``before`` pictures of ``total`` were done when it began."""
    ended = threading.Event()
    lines = _Lines(before, total)
    lines.show(0, 0)

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            lines.show(*read())

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
        lines.show(*read())
    finally:
        ended.set()
        thread.join(timeout=POLL_SECONDS)


class _Lines:
    """Prints a line for each fortieth of the work, and one a minute where that takes longer."""

    def __init__(self, before: int, total: int) -> None:
        self._before, self._total = before, total
        self._started = self._shown_at = time.monotonic()
        self._shown = -1

    def show(self, done: int, failed: int) -> None:
        """Tell that ``done`` pictures are encoded since the start, ``failed`` among them."""
        now = time.monotonic()
        step = (self._before + done) * PROGRESS_LINES // self._total
        if step == self._shown and now - self._shown_at < QUIET_SECONDS:
            return
        self._shown, self._shown_at = step, now
        facts: dict[str, float | int | str] = {"failed": failed}
        if done:
            rate = done / (now - self._started)
            left = self._total - self._before - done
            facts = {"pictures_per_second": round(rate, 1), "seconds_left": round(left / rate), **facts}
        progress.report("latents", self._before + done, self._total, "pictures", **facts)
