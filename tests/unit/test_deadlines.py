"""Deadlines by one thread: what is late is ended, once, and nothing else."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from functools import partial

from smooth.data.deadlines import Deadlines


def watchers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "deadlines"}


def test_only_what_is_late_is_ended() -> None:
    deadlines = Deadlines(2)
    ended: list[int] = []
    begun = time.monotonic()
    with ExitStack() as under_way:
        for number in range(100):
            with deadlines.watch(partial(ended.append, -number)):
                pass
        for number in range(1, 4):
            under_way.enter_context(deadlines.watch(partial(ended.append, number)))
        while len(ended) < 3:
            assert time.monotonic() < begun + 60
            time.sleep(0.01)
        assert time.monotonic() - begun >= 2
    assert ended == [1, 2, 3]


def test_the_watch_ends_with_its_work_and_begins_again() -> None:
    deadlines = Deadlines(0.1)
    before = watchers()  # of others' deadlines
    for _ in range(2):
        counted, ended = threading.Event(), threading.Event()

        def end(counted: threading.Event = counted, ended: threading.Event = ended) -> None:
            counted.wait(60)
            ended.set()

        with deadlines.watch(end):
            assert len(watchers() - before) == 1
            counted.set()
            assert ended.wait(60)
        limit = time.monotonic() + 60
        while watchers() - before:
            assert time.monotonic() < limit
            time.sleep(0.01)
