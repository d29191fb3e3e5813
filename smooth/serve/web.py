"""HTTP: who may ask, what is read of a request, what is answered. Every refusal is JSON, ``{"error": ...}``."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from smooth.serve.order import MOST_BODY, Limits, Order, OrderError, read_order

MODEL_HEADER = "X-Smooth-Model"
DIGEST_VARIABLE = "SMOOTH_SERVE_TOKEN_DIGEST"  # for Serve's proxy, which is a process of its own
CLIENT_GONE = 499

logger = logging.getLogger(__name__)
Painted = tuple[bytes, str]
"""A PNG, and the NAME/VERSION that painted it."""


class BusyError(Exception):
    """Nobody can paint it now; tells why, and after how many seconds to come again."""

    def __init__(self, why: str, seconds: int) -> None:
        super().__init__(why)
        self.seconds = seconds


def digest(token: str) -> str:
    """What is known of a token where it is asked for."""
    return hashlib.sha256(token.encode()).hexdigest()


def application(
    paint: Callable[[Order], Awaitable[Painted]],
    health: Callable[[], dict[str, Any]],
    counted: Callable[[int], None],
    limits: Limits,
    hosts: Sequence[str] | None,
    token_digest: str | None,
) -> Starlette:
    """The front's ASGI application.

    Args:
        paint: paints; raises :class:`OrderError` or :class:`BusyError`.
        health: what ``GET /health`` tells; its ``ready`` decides between 200 and 503.
        counted: told the status of each answer to ``POST /generate``.
        limits: of a request.
        hosts: names that clients may call this server by; any if None.
        token_digest: :func:`digest` of the bearer token that every request needs; none if None.
    """

    async def generate(request: Request) -> Response:
        response = await _generate(request, paint, limits)
        counted(response.status_code)
        return response

    async def told(_request: Request) -> Response:
        state = health()
        return JSONResponse(state, status_code=200 if state["ready"] else 503)

    async def refused(_request: Request, error: Any) -> Response:
        ways = "there are POST /generate and GET /health"
        headers = dict(error.headers or {})
        return JSONResponse({"error": f"{error.detail.lower()}: {ways}"}, error.status_code, headers)

    middleware = [] if hosts is None else [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
    if token_digest is not None:
        middleware.append(Middleware(_Bearer, token_digest=token_digest))
    return Starlette(
        routes=[Route("/generate", generate, methods=["POST"]), Route("/health", told, methods=["GET"])],
        middleware=middleware,
        exception_handlers={HTTPException: refused},
    )


async def _generate(request: Request, paint: Callable[[Order], Awaitable[Painted]], limits: Limits) -> Response:
    try:
        data, model = await paint(read_order(await _body(request), limits))
    except OrderError as refusal:
        return JSONResponse({"error": str(refusal)}, refusal.status)
    except BusyError as busy:
        told = f"{busy}; come again in {busy.seconds} s"
        return JSONResponse({"error": told}, 503, {"Retry-After": str(busy.seconds)})
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    except Exception:
        logger.exception("a picture could not be painted")
        return JSONResponse({"error": "the picture could not be painted; the service's log tells why"}, 500)
    return Response(data, media_type="image/png", headers={MODEL_HEADER: model})


async def _body(request: Request) -> bytes:
    """At most as much as may be, whatever a client sends.

    Raises:
        OrderError: 415 for another type, 413 for more.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of another site can't send without being asked first
        raise OrderError(415, f"Content-Type is {kind[:80] or 'missing'}; send application/json")
    too_large = OrderError(413, f"the body has more than {MOST_BODY} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > MOST_BODY:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            raise too_large
    return bytes(body)


def of_the_proxy() -> list[Middleware]:
    """What Serve's proxy calls for its middleware; it answers ``/-/healthz`` and ``/-/routes`` by itself."""
    return [Middleware(_Bearer, token_digest=os.environ[DIGEST_VARIABLE])]


class _Bearer:
    """Lets nothing through without the token."""

    def __init__(self, app: ASGIApp, token_digest: str) -> None:
        self._app, self._digest = app, token_digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_known(HTTPConnection(scope).headers.get("authorization", "")):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            told = json.dumps({"error": "send the header Authorization: Bearer TOKEN"})
            refusal = Response(told, 401, {"WWW-Authenticate": "Bearer"}, "application/json")
            await refusal(scope, receive, send)

    def _is_known(self, header: str) -> bool:
        scheme, _, token = header.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(digest(token.strip()), self._digest)
