"""How much of a host a process takes, on clocks and headers alone; the real stage is in tests/integration."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from smooth.data.polite import Hosts, retry_after

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Sun, 01 Mar 2026 12:01:30 GMT", 90.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("²", None),
        ("", None),
        ("1e9", None),
    ],
)
def test_a_wait_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


def test_a_host_gets_no_more_requests_at_once_than_allowed_and_another_its_own() -> None:
    hosts, lock = Hosts(2), threading.Lock()
    at_once = most = 0

    def ask(_: int) -> None:
        nonlocal at_once, most
        with hosts.slot("a"):
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.02)
            with lock:
                at_once -= 1

    with hosts.slot("b"), hosts.slot("b"), ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(12)))
    assert most == 2


def test_a_slot_that_does_not_come_free_is_a_timeout() -> None:
    hosts = Hosts(1)
    with hosts.slot("a"), pytest.raises(TimeoutError), hosts.slot("a", 0.01):
        pass
    with hosts.slot("a", 0.01):
        pass


def test_a_host_that_asked_for_quiet_is_left_alone_and_others_are_not() -> None:
    hosts = Hosts(1)
    hosts.keep_quiet("far", 600)
    started = time.monotonic()
    hosts.keep_quiet("near", 0.2)
    hosts.keep_quiet("near", 0.01)  # the longer one holds
    hosts.wait("near")
    assert time.monotonic() - started >= 0.2
    hosts.wait("another")
    assert time.monotonic() - started < 60
