"""Fetch a stranger's URL: http and https to public addresses only, bounded in bytes, time and hops.

A URL list is written by strangers. Each hop is judged and dialled by :mod:`smooth.data.guard`, and takes its turn at
the host by :mod:`smooth.data.polite`. `Fetcher` stands in for img2dataset's own download function, which opens any
scheme to any address and reads without end.
"""

from __future__ import annotations

import http.client
import io
import random
import socket
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Self, cast

from smooth.data.deadlines import Deadlines
from smooth.data.guard import FetchPolicy, RefusedError, check_url, host_of
from smooth.data.polite import Hosts, retry_after

USER_AGENT = "img2dataset"  # tells a site who asks, and which X-Robots-Tag lines are meant for us
AGENT = f"Mozilla/5.0 (compatible; {USER_AGENT})"
ROBOTS = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
ASKS_FOR_TIME = frozenset({429, 503})  # statuses with which Retry-After is honoured
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
CHUNK = 64 * 1024


class Fetcher:
    """Fetches pictures under a policy; one object serves all threads of a process."""

    def __init__(self, policy: FetchPolicy) -> None:
        self.policy = policy
        self.hosts = Hosts(policy.connections_per_host)
        self._deadlines = Deadlines(policy.deadline_s)
        self._opener = urllib.request.OpenerDirector()
        errors = (urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler())
        for handler in (_Web(), _Redirects(), *errors, urllib.request.UnknownHandler()):
            self._opener.add_handler(handler)

    def __call__(self, row: tuple[int, str], **_ignored: Any) -> tuple[int, io.BytesIO | None, str | None]:
        """img2dataset's signature: (key, URL) => (key, body or None, error message or None)."""
        key, url = row
        message = ""
        for attempt in range(self.policy.retries + 1):
            try:
                return key, io.BytesIO(self.fetch(url)), None
            except (OSError, http.client.HTTPException, ValueError) as error:
                # An HTTP status keeps a connection open until its body is read.
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                message = _message(error)
                asked = self._heed(error, url)
                if not is_transient(error) or attempt == self.policy.retries or asked > self.policy.deadline_s:
                    break
                if not asked:
                    time.sleep(self.policy.back_off_s * 2**attempt * random.uniform(0.5, 1.5))
        return key, None, message

    def _heed(self, error: Exception, url: str) -> float:
        """Seconds that the host asks for by Retry-After, else 0; all requests to it wait, a deadline's time at most."""
        if not isinstance(error, urllib.error.HTTPError) or error.code not in ASKS_FOR_TIME:
            return 0.0
        asked = retry_after(error.headers.get("Retry-After")) or 0.0
        # After a redirect the host is another than the list's.
        self.hosts.keep_quiet(host_of(error.url or url), min(asked, self.policy.deadline_s))
        return asked

    def fetch(self, url: str) -> bytes:
        """The body behind a URL.

        Raises:
            RefusedError: the policy says no, to the URL or to what it led to.
            OSError, http.client.HTTPException, ValueError: the request failed.
        """
        check_url(url)
        with _Trip(self.policy, self.hosts) as trip:
            trip.take_turn(host_of(url))
            with self._deadlines.watch(trip.cut):
                try:
                    return self._body(_Request(url, trip))
                except (OSError, http.client.HTTPException, ValueError) as error:
                    if trip.late:
                        raise RefusedError("too_slow") from None
                    raise _plain_cause(error) from None

    def _body(self, request: _Request) -> bytes:
        with self._opener.open(request, timeout=self.policy.timeout_s) as response:
            _check_headers(response.headers, self.policy.max_bytes)
            body = _read(response, self.policy.max_bytes)
        if request.trip.late:  # where a body has no announced length, a cut looks like its end
            raise RefusedError("too_slow")
        return body


class _Trip:
    """One try to get a picture, redirects included: its place at a host, its connections, and whether it was cut."""

    def __init__(self, policy: FetchPolicy, hosts: Hosts) -> None:
        self.policy = policy
        self.late = False
        self._hosts = hosts
        self._turn = ExitStack()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._turn.close()

    def take_turn(self, host: str, timeout_s: float | None = None) -> None:
        """Wait for a place at the host, and leave the one that an earlier hop took."""
        self._turn.close()
        self._hosts.wait(host)
        self._turn.enter_context(self._hosts.slot(host, timeout_s))

    def connected(self, connection: socket.socket) -> None:
        """Take note of a connection, to cut it at the deadline.

        Raises:
            RefusedError: that has passed.
        """
        self._sockets.append(connection)
        if self.late:
            raise RefusedError("too_slow")

    def cut(self) -> None:
        """End every wait for bytes: a server that drips would never meet the socket's timeout."""
        self.late = True
        for connection in self._sockets:
            with suppress(OSError):  # closed in the meantime
                connection.shutdown(socket.SHUT_RDWR)


class _Request(urllib.request.Request):
    """A request that knows its trip, since the handlers below serve all threads."""

    def __init__(self, url: str, trip: _Trip) -> None:
        super().__init__(url, headers={"User-Agent": AGENT})
        self.trip = trip


class _Plain(http.client.HTTPConnection):
    trip: _Trip

    def connect(self) -> None:
        super().connect()
        self.trip.connected(self.sock)


class _Secure(http.client.HTTPSConnection):
    trip: _Trip

    def connect(self) -> None:
        super().connect()
        self.trip.connected(self.sock)


class _Web(urllib.request.AbstractHTTPHandler):
    """Opens the connection of each hop through the policy."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: _Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, _Plain, request.trip), request)

    def https_open(self, request: _Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, _Secure, request.trip), request)

    @staticmethod
    def _connection(
        kind: type[_Plain | _Secure], trip: _Trip, host: str, **settings: Any
    ) -> http.client.HTTPConnection:
        connection: Any = kind(host, **settings)
        connection.trip = trip
        # http.client's own way to another socket; TLS is put on top of it, under the host's name.
        connection._create_connection = lambda address, *_: trip.policy.connect(*address)
        return cast(http.client.HTTPConnection, connection)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib's redirects, judged like first requests; the body of a redirect is not read."""

    max_repeats = 2
    max_redirections = 5

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        fp.close()  # or urllib reads all of it
        check_url(newurl)
        req.trip.take_turn(host_of(newurl), req.trip.policy.timeout_s)
        new: Any = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            new.trip = req.trip
        return new


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in TRANSIENT_STATUS
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return isinstance(error, TimeoutError | ConnectionError | http.client.IncompleteRead)


def _plain_cause(error: Exception) -> Exception:
    """What urllib wraps into an error of its own."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(error, urllib.error.URLError) and isinstance(reason, OSError) else error


def _message(error: Exception) -> str:
    """What the shard's table says of an error; :mod:`smooth.data.causes` reads it."""
    known = (http.client.IncompleteRead, http.client.RemoteDisconnected, http.client.InvalidURL)
    if isinstance(error, http.client.HTTPException) and not isinstance(error, known):
        return "bad_http"  # its text is whatever the server said
    return str(error) or type(error).__name__


def _check_headers(headers: Any, max_bytes: int) -> None:
    """Refuse what its owner reserves (X-Robots-Tag, TDM reservation) and what announces too many bytes."""
    for line in headers.get_all("X-Robots-Tag", []):
        agent, _, rest = line.rpartition(":")
        directives = {word.strip().lower() for word in rest.split(",")}
        if agent.strip().lower() in ("", USER_AGENT) and directives & ROBOTS:
            raise RefusedError("robots")
    if headers.get("TDM-Reservation", "").strip() == "1":
        raise RefusedError("tdm_reserved")
    announced = headers.get("Content-Length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise RefusedError("too_large")


def _read(response: Any, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = max_bytes
    while chunk := response.read1(min(CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise RefusedError("too_large")
        parts.append(chunk)
    if response.length:  # what the server announced and did not send
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)
