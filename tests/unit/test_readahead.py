"""Reading ahead: in order, bounded, with errors at their items and no thread left."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from smooth.data.readahead import ReadAhead


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_items_come_in_order_and_boundedly_many_are_made_ahead() -> None:
    made: list[int] = []
    with ReadAhead(lambda item: made.append(item) or item, count(), depth=3) as items:
        for item in range(5):
            assert next(items) == item
            deadline = time.monotonic() + 60
            while len(made) < item + 4 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert made == list(range(item + 4))
    assert _threads() == []


def test_they_end_where_the_items_end() -> None:
    with ReadAhead(str, range(3), depth=5) as items:
        assert list(items) == ["0", "1", "2"]


def test_an_error_is_raised_at_its_item() -> None:
    def make(item: int) -> int:
        if item == 2:
            raise OSError("the disk is gone")
        return item

    with ReadAhead(make, count(), depth=4) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)
    assert _threads() == []


def test_an_exception_in_the_block_ends_the_thread_and_what_waits_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    begun, go_on = threading.Event(), threading.Event()
    shutdown = ThreadPoolExecutor.shutdown

    def shut(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """The item under way goes on once the others had their chance to be called off."""
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        go_on.set()
        shutdown(pool, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shut)

    def make(item: int) -> int:
        made.append(item)
        if item == 1:
            begun.set()
            go_on.wait(60)
        return item

    def leave() -> None:
        with ReadAhead(make, count(), depth=4) as items:
            next(items)
            begun.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert made == [0, 1]
    assert _threads() == []
