"""Addresses and ports that servers of this machine listen on."""

from __future__ import annotations

import ipaddress
import socket

LOOPBACK = "127.0.0.1"
CLUSTER_PORTS = {
    "SMOOTH_RAY_PORT": 6379,
    "SMOOTH_RAY_DASHBOARD_PORT": 8265,
    "SMOOTH_MLFLOW_PORT": 5000,
    "SMOOTH_PREFECT_PORT": 4200,
}
"""Of a local cluster's services: the variable that moves one -> where it is else."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_names(host: str) -> list[str] | None:
    """What clients call a server on ``host`` in a request's Host header, IPv6 in brackets; None if others reach it."""
    if not is_loopback(host):
        return None
    own = f"[{ipaddress.IPv6Address(host)}]" if ":" in host else host
    return ["localhost", LOOPBACK, "[::1]", own]


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket that listens; port 0 is any free one, ``option`` is what gives the port.

    Raises:
        ValueError: the address can't be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"can't listen on {host}:{port}: {error.strerror or error}; give another {option}") from error


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on ``port`` of ``host``."""
    try:
        listen(host, port).close()
    except ValueError:
        return False
    return True
