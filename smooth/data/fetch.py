"""Fetch a stranger's URL: http and https to public addresses only, bounded in bytes, time and hops.

A URL list is written by strangers, and a cluster's own network answers to whoever is inside: metadata services,
databases, ``file:``. Each hop is judged by the address it resolves to, and that very address is connected to, so a
name can't change its mind in between. `Fetcher` stands in for img2dataset's own download function, which opens any
scheme to any address and reads without end.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import random
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

USER_AGENT = "img2dataset"  # tells a site who asks, and which X-Robots-Tag lines are meant for us
ROBOTS = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
CHUNK = 64 * 1024
BACK_OFF = 0.5  # seconds before the first retry, doubled for each one after
# IPv6 ranges that carry an IPv4 address: judged as a whole, since the way through them can't be checked.
TUNNELS = tuple(ipaddress.ip_network(text) for text in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48"))


class RefusedError(OSError):
    """The policy refuses a request; the message is the cause, as the manifest counts it."""


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name, as the system resolves it."""
    return [str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def dial(address: str, port: int, timeout: float) -> socket.socket:
    """Connect to a numeric address, so nothing is resolved again: the only place where ingest opens a socket."""
    return socket.create_connection((address, port), timeout)


def is_public(address: str) -> bool:
    """Whether an address is on the open internet: not loopback, private, link-local, multicast or a tunnel."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in tunnel for tunnel in TUNNELS):
            return False
    return ip.is_global and not ip.is_multicast


@dataclass(frozen=True)
class FetchPolicy:
    """What a request may do. It is pickled to the downloading processes."""

    timeout_s: float = 10.0  # of connecting, and of waiting for the next bytes
    deadline_s: float = 60.0  # of one try, redirects and slow bodies included
    max_bytes: int = 50_000_000
    retries: int = 2  # of transient failures alone
    # "host:port" as URLs spell it, which may resolve to any address
    allowed_hosts: frozenset[str] = frozenset()
    resolve: Callable[[str, int], list[str]] = resolve
    dial: Callable[[str, int, float], socket.socket] = dial

    def connect(self, host: str, port: int) -> socket.socket:
        """A socket to the host, at an address that was checked.

        Raises:
            RefusedError: one of its addresses is not public.
            OSError: it has none, or none of them answers.
        """
        addresses = self.resolve(host, port)
        if f"{host}:{port}" not in self.allowed_hosts and not all(map(is_public, addresses)):
            raise RefusedError("forbidden_address")
        failure: OSError = socket.gaierror(f"{host} has no address")
        for address in addresses:
            try:
                return self.dial(address, port, self.timeout_s)
            except OSError as error:
                failure = error
        raise failure


class Fetcher:
    """Fetches pictures under a policy; one object serves all threads of a process."""

    def __init__(self, policy: FetchPolicy) -> None:
        self.policy = policy

    def __call__(self, row: tuple[int, str], **_ignored: Any) -> tuple[int, io.BytesIO | None, str | None]:
        """img2dataset's signature: (key, URL) => (key, body or None, error message or None)."""
        key, url = row
        message = ""
        for attempt in range(self.policy.retries + 1):
            if attempt:
                time.sleep(BACK_OFF * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            try:
                return key, io.BytesIO(self.fetch(url)), None
            except (OSError, http.client.HTTPException, ValueError) as error:
                # An HTTP status keeps a connection open until its body is read.
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                message = _message(error)
                if not is_transient(error):
                    break
        return key, None, message

    def fetch(self, url: str) -> bytes:
        """The body behind a URL.

        Raises:
            RefusedError: the policy says no, to the URL or to what it led to.
            OSError, http.client.HTTPException, ValueError: the request failed.
        """
        web = _Web(self.policy)
        opener = urllib.request.OpenerDirector()
        errors = (urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler())
        for handler in (web, _Redirects(), *errors, urllib.request.UnknownHandler()):
            opener.add_handler(handler)
        _check_url(url)
        agent = f"Mozilla/5.0 (compatible; {USER_AGENT})"
        request = urllib.request.Request(url, headers={"User-Agent": agent})  # noqa: S310  (its scheme was checked)
        with web.deadline(), opener.open(request, timeout=self.policy.timeout_s) as response:
            _check_headers(response.headers, self.policy.max_bytes)
            return _read(response, self.policy.max_bytes)


class _Plain(http.client.HTTPConnection):
    web: _Web

    def connect(self) -> None:
        super().connect()
        self.web.sockets.append(self.sock)


class _Secure(http.client.HTTPSConnection):
    web: _Web

    def connect(self) -> None:
        super().connect()
        self.web.sockets.append(self.sock)


class _Web(urllib.request.AbstractHTTPHandler):
    """Opens the connection of each hop through the policy, and cuts them at the deadline of the whole."""

    def __init__(self, policy: FetchPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.late = False
        self.sockets: list[socket.socket] = []

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, _Plain), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, _Secure), request)

    def _connection(self, kind: type[_Plain | _Secure], host: str, **settings: Any) -> http.client.HTTPConnection:
        connection: Any = kind(host, **settings)
        connection.web = self
        # http.client's own way to another socket; TLS is put on top of it, under the host's name.
        connection._create_connection = lambda address, *_: self.policy.connect(*address)
        return cast(http.client.HTTPConnection, connection)

    @contextmanager
    def deadline(self) -> Iterator[None]:
        """End every wait for bytes at the deadline: a server that drips would never meet the socket's timeout."""
        timer = threading.Timer(self.policy.deadline_s, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self.late:
                raise _plain_cause(error) from None
        finally:
            timer.cancel()
        if self.late:  # where a body has no announced length, a cut looks like its end
            raise RefusedError("too_slow")

    def _cut(self) -> None:
        self.late = True
        for connection in self.sockets:
            with suppress(OSError):  # closed in the meantime
                connection.shutdown(socket.SHUT_RDWR)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib's redirects, judged like first requests; the body of a redirect is not read."""

    max_repeats = 2
    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # or urllib reads all of it
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise RefusedError("forbidden_scheme")
    if parts.username is not None or parts.password is not None or not parts.hostname:
        raise RefusedError("bad_url")


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
