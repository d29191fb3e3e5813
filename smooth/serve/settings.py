"""How the service runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from smooth.listening import is_loopback
from smooth.serve.order import Limits

TOKEN_VARIABLE = "SMOOTH_SERVE_TOKEN"  # noqa: S105 - the variable's name
LEAST_TOKEN = 16  # characters


@dataclass(frozen=True)
class Settings:
    """What front and painters are started with."""

    model: str
    """``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``"""
    scratch: str
    """absolute folder for copies of what was registered"""
    limits: Limits = field(default_factory=Limits)
    replicas: int = 1
    """painters"""
    threads: int = 1
    """of a painter, on the CPU"""
    batch: int = 8
    """pictures that are painted together, at most"""
    wait_seconds: float = 0.05
    """that a request waits for others while the painter has nothing to do"""
    queue: int = 64
    """requests that wait before more are refused, beside those that the painters hold"""
    poll_seconds: float = 5.0
    """between two looks at the registry"""

    @property
    def ongoing(self) -> int:
        """Requests that a painter holds at once: the batch at work, and others to make batches of."""
        return 4 * self.batch


def take_token(host: str) -> str | None:
    """The bearer token, out of the environment: no process started later inherits it.

    Raises:
        ValueError: none for a host that others reach, or a short one.
    """
    token = os.environ.pop(TOKEN_VARIABLE, "")
    if not token and not is_loopback(host):
        raise ValueError(
            f"--host {host} can be reached from other machines; set {TOKEN_VARIABLE} to the token that clients must "
            "send as Authorization: Bearer TOKEN, or stay on 127.0.0.1"
        )
    if token and (len(token) < LEAST_TOKEN or not token.isascii() or token != token.strip()):
        raise ValueError(
            f"{TOKEN_VARIABLE} is no token: give at least {LEAST_TOKEN} ASCII characters without blanks around them, "
            "such as `openssl rand -hex 32` makes"
        )
    return token or None
