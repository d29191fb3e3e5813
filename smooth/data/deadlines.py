"""One deadline for each of many things under way, and one thread that watches them all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Deadlines:
    """Calls what ends a thing that takes longer than ``seconds``; one object serves all threads of a process.

    A ``threading.Timer`` for each would start a thread for each, which costs a tenth of fetching a picture. All have
    the same time, so the first to begin is the first that is due, and the watch can sleep until then. It ends when it
    finds nothing under way.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._under_way: dict[object, tuple[float, Callable[[], None]]] = {}  # in the order of their ends
        self._watching = False

    @contextmanager
    def watch(self, end: Callable[[], None]) -> Iterator[None]:
        """Call ``end``, in another thread, unless the block is through in time."""
        token = object()
        with self._lock:
            self._under_way[token] = time.monotonic() + self._seconds, end
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._run, name="deadlines", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._under_way.pop(token, None)

    def _run(self) -> None:
        while (left := self._end_what_is_due()) is not None:
            time.sleep(left)

    def _end_what_is_due(self) -> float | None:
        """Seconds until the next one is due; None where nothing is under way, and nobody watches any more."""
        while True:
            with self._lock:
                if not self._under_way:
                    self._watching = False
                    return None
                token, (due, end) = next(iter(self._under_way.items()))
                left = due - time.monotonic()
                if left > 0:
                    return left
                del self._under_way[token]
            end()
