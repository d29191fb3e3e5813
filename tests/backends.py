"""Small servers behind a guard: they tell what reached them."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web
from multidict import CIMultiDict

BODY = "the service's own"


def basic(login: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


@dataclass
class Request:
    """One that reached a server."""

    method: str
    path: str
    headers: CIMultiDict[str]


@dataclass
class Backend:
    """A server of the test's own, in a thread."""

    users: dict[str, str] = field(default_factory=dict)
    """Who may ask for ``/version``, as with MLflow."""
    look_seconds: float = 0.0
    """What a look at a login takes."""
    seen: list[Request] = field(default_factory=list)
    port: int = 0
    left: threading.Event = field(default_factory=threading.Event)
    """Set once somebody who waited for an answer without end has gone."""
    more: threading.Event = field(default_factory=threading.Event)
    """The second half of ``/halves`` waits for it."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(Request(request.method, request.raw_path, request.headers.copy()))
        name = request.path.strip("/").replace("-", "_")
        page = getattr(self, f"on_{name}", None)
        return await page(request) if page else web.Response(text=BODY, headers={"X-Own": "yes", "Keep-Alive": "x"})

    async def on_version(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.look_seconds)
        allowed = [basic(f"{user}:{password}")["Authorization"] for user, password in self.users.items()]
        return web.Response(status=200 if request.headers.get("Authorization") in allowed else 401)

    async def on_digest(self, request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        async for chunk in request.content.iter_any():
            digest.update(chunk)
        return web.json_response({"sha256": digest.hexdigest()})

    async def on_big(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(int(request.query["mib"])):
            await response.write(b"\x5a" * (1 << 20))
        return response

    async def on_halves(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await asyncio.to_thread(self.more.wait, 30)
        await response.write(b"second")
        return response

    async def on_endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"tick\n")
                await asyncio.sleep(0.02)
        finally:
            self.left.set()

    async def on_cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    async def on_kinds(self, request: web.Request) -> web.Response:
        headers = CIMultiDict({"ETag": '"1"'})
        headers.extend([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        status = int(request.query["status"])
        if 300 <= status < 304:
            headers["Location"] = "/elsewhere"
        return web.Response(status=status, text=BODY if status not in (204, 304) else None, headers=headers)

    async def on_zipped(self, request: web.Request) -> web.Response:
        body = gzip.compress(BODY.encode(), mtime=0)
        return web.Response(body=body, headers={"Content-Encoding": "gzip", "Content-Type": "text/plain"})

    async def on_socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("prefect",), max_msg_size=1 << 24)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
            elif message.data == "close":
                await socket.close(code=1008, message=b"not allowed")
            else:
                await socket.send_str(message.data)
        self.seen.append(Request("CLOSE", str(socket.close_code), CIMultiDict()))
        return socket


@contextmanager
def serving(backend: Backend, port: int = 0) -> Iterator[Backend]:
    """The server, while it listens on loopback."""
    loop, started, end = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", backend.answer)
        runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            shutdown_timeout=1,
            handler_cancellation=True,
            max_line_size=1 << 16,
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        backend.port = site.port
        started.set()
        await end.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(30)
    try:
        yield backend
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
        loop.close()
