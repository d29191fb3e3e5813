"""What a request may do: the judgement of URLs and addresses, and the one place where a socket is opened.

A cluster's own network answers to whoever is inside: metadata services, databases, ``file:``. A name is judged by the
addresses it resolves to, and one of those very addresses is connected to, so it can't change its mind in between.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

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
    back_off_s: float = 0.5  # before the first retry, doubled for each one after
    connections_per_host: int = 32  # at once, of this process
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


def check_url(url: str) -> None:
    """Refuse other schemes than http and https, user names and missing hosts.

    Raises:
        RefusedError: the policy says no.
        ValueError: it can't be taken apart.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise RefusedError("forbidden_scheme")
    if parts.username is not None or parts.password is not None or not parts.hostname:
        raise RefusedError("bad_url")


def host_of(url: str) -> str:
    """The host of a URL that was checked, without its port."""
    return (urllib.parse.urlsplit(url).hostname or "").rstrip(".")
