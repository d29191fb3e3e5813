"""``python -m infra.local.guard``: what others reach of an open cluster, and nothing of it without the credential.

MLflow, Prefect and Ray's dashboard keep to loopback, as ever, with their own authentication; but each answers something
to anybody: pages, health, descriptions of its interface. This process alone listens on the address that was asked for,
a port a service. A request or a websocket without that service's credential gets 401, whatever its method and path. One
with it goes on, parsed and written anew, so that no bytes of a stranger's are a service's to interpret.

A browser adds a login that it knows to requests that another site's page makes, too: those are refused by their origin.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import WSMsgType, web
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from infra import credentials
from infra.local import locks
from infra.local.access import ADMIN
from infra.local.layout import HOST
from infra.local.locks import AUTHORIZATION, RAY_AUTHORIZATION, Headers, Lock, MLflowLock, PrefectLock, RayLock

LINE_BYTES = 1 << 16
"""Of a request's first line, and of a header: MLflow's pages ask for hundreds of runs in one address."""
MESSAGE_BYTES = 1 << 26
"""Of a websocket's message; the services themselves take a quarter."""
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 75.0
HEARTBEAT_SECONDS = 30.0
LINGER_SECONDS = 2.0
"""For what a client still sends after its answer."""
STOP_SECONDS = 0.5
"""For each of the steps in which a server ends."""

# Of one connection (RFC 9110, 7.6.1), or written anew.
OF_A_CONNECTION = frozenset(
    {"connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
OURS = frozenset(name.lower() for name in ("Forwarded", "X-Real-IP", AUTHORIZATION, RAY_AUTHORIZATION))

log = logging.getLogger("guard")


@dataclass(frozen=True)
class Door:
    """A service's port to the outside."""

    place: URL
    """Where the service listens: ``http://127.0.0.1:port``."""
    lock: Lock
    client: aiohttp.ClientSession

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: nothing of it is looked at before its credential."""
        try:
            login = await self.lock.opens(request)
        except locks.BusyError:
            busy = self._say(429, f"too many logins wait to be looked at; come again in {locks.RETRY_SECONDS} s")
            busy.headers["Retry-After"] = str(locks.RETRY_SECONDS)
            return busy
        if login is None:
            if AUTHORIZATION in request.headers or RAY_AUTHORIZATION in request.headers:
                log.info("%s: a wrong credential from %s", self.lock.title, request.remote)
            return self._say(401, f"{self.lock.title} wants its credential", *self.lock.challenges)
        if is_of_another_site(request):
            return self._say(403, f"another site's page may not call {self.lock.title}")
        if not request.raw_path.startswith("/") or request.method == "CONNECT":
            return self._say(400, "this is no proxy to elsewhere")
        headers = onward(request.headers)
        headers.update(login)
        headers["X-Forwarded-For"] = request.remote or ""
        url = URL(f"{self.place}".rstrip("/") + request.raw_path, encoded=True)
        try:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._relay(request, url, headers)
            return await self._forward(request, url, headers)
        except UnicodeEncodeError:
            return self._say(400, "the address or a header is no UTF-8")
        except (aiohttp.ClientError, TimeoutError) as error:
            if request.content.exception() is not None:
                return self._say(400, "what was sent is broken")
            log.warning("%s does not answer: %s", self.lock.title, type(error).__name__)
            return self._say(502, f"{self.lock.title} does not answer; look at `make cluster-status` on its machine")

    @staticmethod
    def _say(status: int, text: str, *challenges: str) -> web.Response:
        headers = CIMultiDict({"Server": "smooth", "Cache-Control": "no-store"})
        headers.extend([("WWW-Authenticate", challenge) for challenge in challenges])
        return web.Response(status=status, text=f"{text}\n", headers=headers)

    async def _forward(self, request: web.BaseRequest, url: URL, headers: CIMultiDict[str]) -> web.StreamResponse:
        """Pass a request and its answer on, both as they come."""
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer has not begun
        body = request.content if request.body_exists else None
        async with self.client.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            passed = web.StreamResponse(status=answer.status, reason=answer.reason, headers=onward(answer.headers))
            await passed.prepare(request)
            try:
                async for chunk in answer.content.iter_any():
                    await passed.write(chunk)
            except (aiohttp.ClientError, TimeoutError) as error:
                # Half an answer must not look whole.
                log.warning("%s broke off an answer: %s", self.lock.title, type(error).__name__)
                if request.transport is not None:
                    request.transport.abort()
                return passed
            await passed.write_eof()
            return passed

    async def _relay(self, request: web.BaseRequest, url: URL, headers: CIMultiDict[str]) -> web.StreamResponse:
        """Pass a websocket's messages on, both ways, until either side closes it."""
        offered = [name.strip() for value in headers.popall("Sec-WebSocket-Protocol", []) for name in value.split(",")]
        if not web.WebSocketResponse(protocols=offered).can_prepare(request):
            return self._say(400, "this is no websocket")
        for name in [name for name in headers if name.lower().startswith("sec-websocket-")]:
            headers.popall(name, None)
        try:
            inner = await self.client.ws_connect(url, protocols=offered, headers=headers, max_msg_size=MESSAGE_BYTES)
        except aiohttp.WSServerHandshakeError as refusal:
            status = refusal.status if 400 <= refusal.status < 600 else 400
            return self._say(status, f"{self.lock.title} has no websocket there")
        chosen = (inner.protocol,) if inner.protocol else ()
        outer = web.WebSocketResponse(protocols=chosen, heartbeat=HEARTBEAT_SECONDS, max_msg_size=MESSAGE_BYTES)
        try:
            await outer.prepare(request)
            async with asyncio.TaskGroup() as both:
                both.create_task(pump(outer, inner))
                both.create_task(pump(inner, outer))
        finally:
            await inner.close()
        return outer


Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def pump(source: Socket, target: Socket) -> None:
    """Pass messages on until ``source`` closes, then close ``target`` for the same reason."""
    reason = b""
    while True:
        message = await source.receive()
        try:
            if message.type is WSMsgType.TEXT:
                await target.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await target.send_bytes(message.data)
            else:
                if message.type is WSMsgType.CLOSE:
                    reason = (message.extra or "").encode()
                break
        except ConnectionError:
            break  # the other side has gone: its own pump closes this one
    code = source.close_code
    sendable = code is not None and (code in {*range(1000, 1004), *range(1007, 1015)} or 3000 <= code < 5000)
    await target.close(code=code if sendable and code is not None else 1001, message=reason)


def onward(headers: Headers) -> CIMultiDict[str]:
    """The headers that are for the other end: not the connection's own, none that claims who asked."""
    named = {name.strip().lower() for value in headers.getall("Connection", []) for name in value.split(",")}
    dropped = (named - {"host"}) | OF_A_CONNECTION | OURS
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in dropped and not name.lower().startswith("x-forwarded-")
    )


def is_of_another_site(request: web.BaseRequest) -> bool:
    """Whether a browser sends this for a page that does not come from this port."""
    origin, host = (request.headers.get(name, "").lower() for name in ("Origin", "Host"))
    return "Origin" in request.headers and (not host or origin.partition("://")[2] != host)


class WithoutRequests(logging.Filter):
    """Of what is no HTTP only that it came: aiohttp's error quotes it, and it may hold a credential."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record stays."""
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.exc_info = None
        return True


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """To the services: a connection a request, so that none is in use that a service just closed."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        max_line_size=LINE_BYTES,
        max_field_size=LINE_BYTES,
    ) as made:
        yield made


@asynccontextmanager
async def opened(door: Door, host: str, port: int) -> AsyncIterator[int]:
    """The door, while it is open; its port, which is a free one for 0."""
    server = web.Server(
        door,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGER_SECONDS,
        logger=log,
        max_field_size=LINE_BYTES,
        max_line_size=LINE_BYTES,
    )
    runner = web.ServerRunner(server, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield site.port
    finally:
        await runner.cleanup()


async def guard(listen: str, doors: Mapping[str, tuple[int, int]], secrets: Mapping[str, str]) -> None:
    """Keep a door open for each service until this process is asked to end.

    Args:
        listen: address of this machine.
        doors: service -> its port outside, its port on loopback.
        secrets: of :mod:`infra.credentials`.
    """
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(client())
        for service, (outer, inner) in doors.items():
            place = URL.build(scheme="http", host=HOST, port=inner)
            lock = LOCKS[service](secrets, place, session)
            await stack.enter_async_context(opened(Door(place, lock, session), listen, outer))
            log.info("%s: %s:%d, for %s", lock.title, listen, outer, place)
        await end.wait()


LOCKS: dict[str, Callable[[Mapping[str, str], URL, aiohttp.ClientSession], Lock]] = {
    "ray": lambda secrets, *_: RayLock(secrets["SMOOTH_RAY_TOKEN"]),
    "mlflow": lambda secrets, *place: MLflowLock(f"{ADMIN}:{secrets['SMOOTH_MLFLOW_PASSWORD']}", *place),
    "prefect": lambda secrets, *_: PrefectLock(secrets["SMOOTH_PREFECT_AUTH"]),
}
"""Service -> the lock of its door."""


def ports(text: str) -> tuple[int, int]:
    """``outside:inside``."""
    outer, _, inner = text.partition(":")
    return int(outer), int(inner)


def main() -> None:
    """Run the guard of a cluster."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.guard", description="The guard of an open cluster.")
    parser.add_argument("--listen", required=True, metavar="ADDRESS", help="of this machine")
    parser.add_argument("--credentials", required=True, type=Path, metavar="FILE", help="of infra.credentials")
    for service in LOCKS:
        parser.add_argument(f"--{service}", type=ports, required=True, metavar="OUTSIDE:INSIDE", help="its two ports")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    log.addFilter(WithoutRequests())
    # Each request takes two of them, and whoever has no credential may still connect.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    doors = {service: getattr(arguments, service) for service in LOCKS}
    asyncio.run(guard(arguments.listen, doors, credentials.read(arguments.credentials)))


if __name__ == "__main__":
    main()
