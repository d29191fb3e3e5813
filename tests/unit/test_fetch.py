"""What the guard of ingest judges by itself; the real stage on a hostile web is in tests/integration."""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.error

import pytest

from smooth.data import fetch, guard
from smooth.data.fetch import Fetcher
from smooth.data.guard import FetchPolicy, RefusedError


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_the_open_internet_is_public(address: str) -> None:
    assert guard.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "224.0.0.251", "0.0.0.0", "192.0.2.1"),
        *("::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"),
        "2001:0:1::1",
    ],
)
def test_the_rest_is_not(address: str) -> None:
    assert not guard.is_public(address)


def _policy(addresses: list[str], **settings: object) -> tuple[FetchPolicy, list[str]]:
    dialled: list[str] = []

    def dial(address: str, port: int, timeout: float) -> socket.socket:
        dialled.append(address)
        raise ConnectionRefusedError("Connection refused")

    return FetchPolicy(resolve=lambda host, port: addresses, dial=dial, **settings), dialled  # type: ignore[arg-type]


def test_one_private_address_of_a_name_spoils_it() -> None:
    policy, dialled = _policy(["93.184.216.34", "10.0.0.1"])
    with pytest.raises(RefusedError, match="forbidden_address"):
        policy.connect("mixed.example", 80)
    assert dialled == []


def test_all_public_addresses_are_tried() -> None:
    policy, dialled = _policy(["93.184.216.34", "93.184.216.35"])
    with pytest.raises(ConnectionRefusedError):
        policy.connect("good.example", 80)
    assert dialled == ["93.184.216.34", "93.184.216.35"]


def test_an_allowed_host_may_be_private_and_its_other_ports_not() -> None:
    policy, dialled = _policy(["10.0.0.1"], allowed_hosts=frozenset({"store.local:9000"}))
    with pytest.raises(ConnectionRefusedError):
        policy.connect("store.local", 9000)
    with pytest.raises(RefusedError):
        policy.connect("store.local", 22)
    assert dialled == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TimeoutError("timed out"), True),
        (ConnectionResetError(), True),
        (http.client.RemoteDisconnected(), True),
        (http.client.IncompleteRead(b""), True),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True),
        (socket.gaierror(socket.EAI_NONAME, "no such name"), False),
        (RefusedError("too_large"), False),
        (ValueError("unknown url type"), False),
    ],
)
def test_what_is_worth_another_try(error: Exception, transient: bool) -> None:
    assert fetch.is_transient(error) is transient


@pytest.mark.parametrize(("status", "tries"), [(503, 3), (429, 3), (404, 1)])
def test_only_transient_failures_are_tried_again(status: int, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def failing(self: Fetcher, url: str) -> bytes:
        asked.append(url)
        raise urllib.error.HTTPError(url, status, "no", http.client.HTTPMessage(), io.BytesIO())

    monkeypatch.setattr(Fetcher, "fetch", failing)
    key, body, message = Fetcher(FetchPolicy(retries=2, back_off_s=0.001))((7, "http://example.org/a.png"))
    assert (key, body, message) == (7, None, f"HTTP Error {status}: no")
    assert len(asked) == tries


@pytest.mark.parametrize(("asks", "tries", "waits"), [("0.3", 3, False), ("1", 2, True), ("9", 1, False)])
def test_retry_after_goes_before_our_own_back_off(
    asks: str, tries: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``0.3`` is no valid value, ``1`` is waited for, ``9`` is longer than a try may take."""
    asked: list[float] = []

    def fetched(self: Fetcher, url: str) -> bytes:
        self.hosts.wait("example.org")
        asked.append(time.monotonic())
        if len(asked) > 1 and waits:
            return b"picture"
        headers = http.client.HTTPMessage()
        headers["Retry-After"] = asks
        raise urllib.error.HTTPError(url, 429, "Too Many Requests", headers, io.BytesIO())

    monkeypatch.setattr(Fetcher, "fetch", fetched)
    policy = FetchPolicy(retries=2, back_off_s=0.001, deadline_s=5)
    _, body, message = Fetcher(policy)((7, "http://example.org/a.png"))
    assert len(asked) == tries
    assert (body is None, message) == ((False, None) if waits else (True, "HTTP Error 429: Too Many Requests"))
    assert asked[-1] - asked[0] >= (1 if waits else 0)


def test_a_connection_made_after_the_deadline_is_cut_like_one_before_it() -> None:
    """The time is up while the connection is being made; its server then drips for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def dial(address: str, port: int, timeout: float) -> socket.socket:
            time.sleep(0.5)
            return guard.dial(address, port, timeout)

        policy = FetchPolicy(deadline_s=0.2, timeout_s=60, dial=dial, allowed_hosts=frozenset({f"127.0.0.1:{port}"}))
        with pytest.raises(RefusedError, match="too_slow"):
            Fetcher(policy).fetch(f"http://127.0.0.1:{port}/")
