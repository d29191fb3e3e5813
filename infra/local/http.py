"""Small HTTP requests to servers on loopback: enough to ask whether one is well."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 30.0  # who is well may be slow where others compute; who is not there is known at once


def request(url: str, *, headers: dict[str, str] | None = None, body: Any = None) -> tuple[int, bytes] | None:
    """GET ``url``, or POST ``body`` as JSON to it; the status and content, or None when nobody answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    payload = None if body is None else json.dumps(body)
    sent = {"Content-Type": "application/json"} if payload else {}
    try:
        connection.request("POST" if payload else "GET", parts.path, payload, sent | (headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def is_ok(url: str, headers: dict[str, str] | None = None) -> bool:
    """Whether ``url`` answers 200."""
    answer = request(url, headers=headers)
    return answer is not None and answer[0] == 200
