"""``python tests/outside.py``: ask what the JSON on standard input lists, print the answers. Runs on another host.

``{"host", "ports": [..], "http": [[method, port, path, headers]], "grpc": [[port, method, metadata]],
"websockets": [[url, first message, headers]]}``; each list may be missing.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SECONDS = 20.0


def port(host: str, number: int) -> str:
    """``open``, or why it can't be reached."""
    try:
        with socket.create_connection((host, number), timeout=5):
            return "open"
    except OSError as error:
        return type(error).__name__


def request(host: str, method: str, number: int, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and the beginning of the content; 0 and the reason where nobody speaks HTTP."""
    connection = http.client.HTTPConnection(host, number, timeout=SECONDS)
    body = "{}" if method == "POST" else None
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")[:400]
    except (OSError, http.client.HTTPException) as error:
        return 0, type(error).__name__
    finally:
        connection.close()


def call(host: str, number: int, method: str, metadata: list[list[str]]) -> str:
    """GRPC's status for an empty message."""
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(f"{host}:{number}") as channel:
        try:
            channel.unary_unary(method)(b"", timeout=SECONDS, metadata=[(key, value) for key, value in metadata])
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def stream(url: str, first: dict[str, Any], headers: dict[str, str]) -> str:
    """What comes after the first message on a Prefect socket, or how it was refused."""
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect

    try:
        with connect(
            url, additional_headers=headers, subprotocols=["prefect"], open_timeout=SECONDS, proxy=None  # type: ignore[list-item]
        ) as socket:  # fmt: skip
            socket.send(json.dumps(first))
            return str(socket.recv(timeout=SECONDS))
    except InvalidStatus as error:
        return f"status {error.response.status_code}"
    except ConnectionClosed as error:
        return f"closed {error.rcvd.code if error.rcvd else ''}"


def main() -> None:
    """Ask everything, eight at a time."""
    asked = json.load(sys.stdin)
    host = asked["host"]
    with ThreadPoolExecutor(8) as pool:
        found = {
            "ports": list(pool.map(lambda number: port(host, number), asked.get("ports", []))),
            "http": list(pool.map(lambda item: request(host, *item), asked.get("http", []))),
            "grpc": list(pool.map(lambda item: call(host, *item), asked.get("grpc", []))),
            "websockets": list(pool.map(lambda item: stream(*item), asked.get("websockets", []))),
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
