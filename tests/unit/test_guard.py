"""The guard of an open cluster, as a process, before small servers.

Nobody passes without the credential, and what passes arrives as it was sent.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync import client
from yarl import URL

from infra import credentials
from infra.local import locks
from infra.local.guard import Door, opened
from infra.local.guard import client as to_services
from infra.local.layout import HOST, PROJECT, free_ports
from infra.local.locks import MLflowLock
from tests.backends import BODY, Backend, basic, serving

connect = partial(client.connect, open_timeout=60)  # where others compute
TOKEN, PASSWORD, AUTH = "a" * 64, "b" * 64, f"smooth:{'c' * 64}"
RIGHT = {
    "ray": {"Authorization": f"Bearer {TOKEN}"},
    "mlflow": basic(f"admin:{PASSWORD}"),
    "prefect": basic(AUTH),
}
WRONG: dict[str, list[dict[str, str]]] = {
    "ray": [
        {"Authorization": f"Bearer {'f' * 64}"},
        {"Authorization": f"Bearer {TOKEN}a"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {'f' * 64}", "X-Ray-Authorization": f"Bearer {TOKEN}"},  # Ray would read the first
        basic(f"{TOKEN}:admin"),
        {"Cookie": f"ray-authentication-token={TOKEN}"},
    ],
    "mlflow": [basic("admin:wrong"), basic(f"other:{PASSWORD}"), {"Authorization": f"Bearer {PASSWORD}"}],
    "prefect": [basic("smooth:wrong"), basic(f"{AUTH}c"), basic(""), {"Authorization": "Basic c21vb3RoOmE*"}],
}


@dataclass
class Guard:
    """The process, and what is behind it."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    backends: dict[str, Backend]
    log: Path

    def connection(self, service: str) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self.ports[service], timeout=30)

    def ask(
        self, service: str, path: str, headers: dict[str, str], method: str = "GET", body: bytes | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self.connection(service)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def send(self, service: str, text: bytes) -> bytes:
        """What comes back for bytes of our own making."""
        with socket.create_connection((HOST, self.ports[service]), timeout=30) as raw:
            raw.sendall(text)
            return b"".join(iter(lambda: raw.recv(65536), b""))


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    folder = tmp_path_factory.mktemp("guard")
    known = {"SMOOTH_RAY_TOKEN": TOKEN, "SMOOTH_MLFLOW_PASSWORD": PASSWORD, "SMOOTH_PREFECT_AUTH": AUTH}
    (folder / "credentials.env").write_text("".join(f"{name}={value}\n" for name, value in known.items()))
    users = {"admin": PASSWORD, "ann": "ann's own, with : and ü"}
    with ExitStack() as stack:
        backends = {name: stack.enter_context(serving(Backend(users))) for name in RIGHT}
        ports = dict(zip(RIGHT, free_ports(3), strict=True))
        command = [sys.executable, "-m", "infra.local.guard", f"--listen={HOST}"]
        command += [f"--credentials={folder / 'credentials.env'}"]
        command += [f"--{name}={ports[name]}:{backends[name].port}" for name in RIGHT]
        with (folder / "log").open("w") as output:
            process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT)
        made = Guard(process, ports, backends, folder / "log")
        stack.callback(process.wait)
        stack.callback(process.kill)
        await_ports(made)
        yield made


def await_ports(guard: Guard) -> None:
    deadline = time.monotonic() + 60
    while guard.log.read_text().count(", for http://") < 3:
        assert guard.process.poll() is None, guard.log.read_text()
        assert time.monotonic() < deadline, guard.log.read_text()
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def nothing_seen(guard: Guard) -> None:
    for backend in guard.backends.values():
        backend.seen.clear()


@pytest.mark.parametrize("service", RIGHT)
def test_nothing_answers_without_the_credential(guard: Guard, service: str) -> None:
    """Whatever the method and the path; and the service does not even hear of it."""
    paths = (
        "/",
        "/health",
        "/api/health",
        "/version",
        "/static/x.js",
        "/openapi.json",
        "/../health",
        "//x",
        "/%2e%2e/",
    )
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "TRACE")
    tries = [(method, path, {}) for path in paths for method in methods]
    tries += [("GET", "/health", headers) for headers in WRONG[service]]
    for method, path, headers in tries:
        answer, text = guard.ask(service, path, headers, method, b"{}" if method == "POST" else None)
        assert answer.status == 401, (method, path, headers)
        assert answer.headers.get_all("WWW-Authenticate")[0].startswith("Basic realm=")
        assert BODY.encode() not in text
        assert answer.headers["X-Own"] is None
    host = f"Host: {HOST}:{guard.ports[service]}\r\nConnection: close\r\n"
    for line in (
        "OPTIONS * HTTP/1.1",
        "CONNECT 127.0.0.1:22 HTTP/1.1",
        "GET http://x.example/ HTTP/1.1",
        "GET / HTTP/1.0",
    ):
        assert guard.send(service, f"{line}\r\n{host}\r\n".encode()).split(b"\r\n")[0].split()[1] == b"401", line
    twice = "".join(f"Authorization: {value}\r\n" for value in ("Basic eDp5", RIGHT[service]["Authorization"]))
    assert guard.send(service, f"GET / HTTP/1.1\r\n{host}{twice}\r\n".encode()).split()[1] == b"401"
    asked = {request.path for request in guard.backends[service].seen}
    assert asked <= ({"/version"} if service == "mlflow" else set())


@pytest.mark.parametrize("service", RIGHT)
def test_a_websocket_is_not_opened_without_the_credential(guard: Guard, service: str) -> None:
    url = f"ws://{HOST}:{guard.ports[service]}/socket"
    for headers in ({}, WRONG[service][0]):
        with pytest.raises(InvalidStatus) as refusal:
            connect(url, additional_headers=headers, subprotocols=["prefect"], proxy=None)  # type: ignore[list-item]
        assert refusal.value.response.status_code == 401
    assert "/socket" not in {request.path for request in guard.backends[service].seen}


def test_ray_takes_its_token_in_each_form_and_is_sent_its_own(guard: Guard) -> None:
    bearer = f"Bearer {TOKEN}"
    forms = [
        {"Authorization": bearer},
        {"authorization": f"bearer {TOKEN}"},
        {"X-Ray-Authorization": bearer},
        basic(f"anybody:{TOKEN}"),
        basic(f":{TOKEN}"),
    ]
    for headers in forms:
        assert guard.ask("ray", "/api/jobs/", headers)[0].status == 200, headers
    for request in guard.backends["ray"].seen:
        assert request.headers.getall("Authorization") == [bearer]
        assert "X-Ray-Authorization" not in request.headers
    challenges = guard.ask("ray", "/", {})[0].headers.get_all("WWW-Authenticate")
    assert challenges == ['Basic realm="Ray"', 'Bearer realm="Ray"']


def test_mlflows_own_users_pass_and_are_asked_for_once_a_while(guard: Guard) -> None:
    users = guard.backends["mlflow"].users
    ann = basic(f"ann:{users['ann']}")
    assert [guard.ask("mlflow", "/x", ann)[0].status for _ in range(3)] == [200] * 3
    assert [request.path for request in guard.backends["mlflow"].seen] == ["/version", "/x", "/x", "/x"]
    assert {request.headers["Authorization"] for request in guard.backends["mlflow"].seen} == {ann["Authorization"]}
    assert guard.ask("mlflow", "/x", basic("bob:new"))[0].status == 401
    users["bob"] = "new"
    assert guard.ask("mlflow", "/x", basic("bob:new"))[0].status == 200


def test_who_sends_wrong_logins_keeps_nobody_waiting(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one who was there before, although his minute is over, nor one who comes for the first time."""
    monkeypatch.setattr(locks, "KNOWN_SECONDS", 0.0)
    backend, flooders, look = guard.backends["mlflow"], 100, 0.3
    known = {name: basic(f"{name}:{backend.users.setdefault(name, 'own')}") for name in ("admin", "ann", "cleo", "dan")}
    monkeypatch.setattr(backend, "look_seconds", look)
    place, statuses = URL(f"http://{HOST}:{backend.port}"), set[tuple[int, str | None]]()

    async def ask(session: aiohttp.ClientSession, port: int, headers: dict[str, str]) -> tuple[int, str | None]:
        async with session.get(f"http://{HOST}:{port}/x", headers=headers) as answer:
            return answer.status, answer.headers.get("Retry-After")

    async def flood(port: int) -> None:
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0), limit=0)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:

            async def send(sender: int) -> None:
                for number in itertools.count():
                    statuses.add(await ask(session, port, basic(f"eve:{sender}-{number}")))
                    await asyncio.sleep(look / 10)

            for sender in range(flooders):
                group.create_task(send(sender))

    async def served() -> dict[str, float]:
        async with to_services() as own, aiohttp.ClientSession() as session:
            lock = MLflowLock(f"admin:{PASSWORD}", place, own)
            async with opened(Door(place, lock, own), HOST, 0) as port:
                assert await ask(session, port, known["ann"]) == (200, None)
                flooding = asyncio.create_task(flood(port))
                while (429, "1") not in statuses:
                    await asyncio.sleep(0.01)
                seconds = {}
                for name, headers in known.items():
                    begun = time.monotonic()
                    assert await ask(session, port, headers) == (200, None), name
                    seconds[name] = time.monotonic() - begun
                backend.seen.clear()
                assert set(await asyncio.gather(*(ask(session, port, known["dan"]) for _ in range(8)))) == {(200, None)}
                asked = [each for each in backend.seen if each.path == "/version"]
                assert [each.headers["Authorization"] for each in asked].count(known["dan"]["Authorization"]) == 1
                flooding.cancel()
                await asyncio.wait([flooding])
                return seconds

    seconds = asyncio.run(served())
    assert max(seconds.values()) < flooders / locks.ASKED_AT_ONCE * look / 2, seconds
    assert statuses == {(401, None), (429, "1")}


def test_requests_and_answers_are_passed_on_as_they_are(guard: Guard) -> None:
    path = "/a/../b%2Fc//d;e?x=1&y=%20+%C3%BC&long=" + "z" * 20_000
    sent = RIGHT["prefect"] | {
        "Cookie": "a=1; b=2", "X-Kept": "ü", "X-Named": "1", "Connection": "X-Named, Host, keep-alive",
        "Keep-Alive": "5", "TE": "trailers", "Upgrade": "h2c", "Proxy-Authorization": "Basic eDp5",
        "X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "x", "Forwarded": "for=1.2.3.4",
    }  # fmt: skip
    answer, text = guard.ask("prefect", path, {name: value.encode() for name, value in sent.items()})  # type: ignore[misc]
    assert (answer.status, text) == (200, BODY.encode())
    assert (answer.headers["X-Own"], answer.headers["Keep-Alive"]) == ("yes", None)
    (request,) = guard.backends["prefect"].seen
    assert (request.method, request.path) == ("GET", path)
    assert set(request.headers) == {
        "Host", "Accept-Encoding", "Authorization", "Cookie", "X-Kept", "X-Forwarded-For", "Connection"
    }  # fmt: skip
    assert request.headers["Connection"] == "close"
    assert request.headers["Host"] == f"{HOST}:{guard.ports['prefect']}"
    assert request.headers["X-Forwarded-For"] == HOST
    assert request.headers["X-Kept"] == "ü"
    assert request.headers["Cookie"] == "a=1; b=2"


def test_each_kind_of_answer(guard: Guard) -> None:
    for status in (200, 204, 302, 304, 401, 404, 500):
        answer, text = guard.ask("mlflow", f"/kinds?status={status}", RIGHT["mlflow"])
        assert (answer.status, text) == (status, b"" if status in (204, 304) else BODY.encode())
        assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
        assert answer.headers["Location"] == ("/elsewhere" if status == 302 else None)
    answer, text = guard.ask("mlflow", "/kinds?status=200", RIGHT["mlflow"], "HEAD")
    assert (answer.status, text, answer.headers["Content-Length"]) == (200, b"", str(len(BODY)))
    answer, text = guard.ask("mlflow", "/zipped", RIGHT["mlflow"])
    assert (answer.headers["Content-Encoding"], gzip.decompress(text).decode()) == ("gzip", BODY)
    old = guard.send(
        "mlflow", f"GET /big?mib=1 HTTP/1.0\r\nAuthorization: {RIGHT['mlflow']['Authorization']}\r\n\r\n".encode()
    )
    assert len(old.partition(b"\r\n\r\n")[2]) == 1 << 20


def test_big_bodies_go_both_ways_in_little_memory(guard: Guard) -> None:
    mib, before = 128, psutil.Process(guard.process.pid).memory_info().rss
    block = os.urandom(1 << 20)
    digest = hashlib.sha256(block * mib).hexdigest()
    sized = {"Content-Length": str(mib << 20)}
    for headers in ({}, sized):  # in chunks, and with its length told
        connection = guard.connection("mlflow")
        connection.request("PUT", "/digest", iter([block] * mib), RIGHT["mlflow"] | headers, encode_chunked=not headers)
        assert json.loads(connection.getresponse().read()) == {"sha256": digest}
        connection.close()
        arrived = guard.backends["mlflow"].seen[-1].headers
        assert ("Content-Length" in arrived, "Transfer-Encoding" in arrived) == (bool(headers), not headers)
    connection = guard.connection("mlflow")
    connection.request("GET", f"/big?mib={mib}", headers=RIGHT["mlflow"])
    answer, count = connection.getresponse(), 0
    while chunk := answer.read(1 << 20):
        count += len(chunk)
    connection.close()
    assert count == mib << 20
    assert psutil.Process(guard.process.pid).memory_info().rss - before < 48 << 20


def test_a_zipped_body_is_passed_on_zipped(guard: Guard) -> None:
    body = gzip.compress(b"spans" * 100)
    _, text = guard.ask("mlflow", "/digest", RIGHT["mlflow"] | {"Content-Encoding": "gzip"}, "POST", body)
    assert json.loads(text) == {"sha256": hashlib.sha256(body).hexdigest()}


def test_an_answer_comes_as_it_is_made(guard: Guard) -> None:
    connection = guard.connection("prefect")
    connection.request("GET", "/halves", headers=RIGHT["prefect"])
    answer = connection.getresponse()
    assert answer.read(5) == b"first"  # while the service holds the rest back
    guard.backends["prefect"].more.set()
    assert answer.read() == b"second"
    connection.close()


def test_who_asks_before_sending_is_told_to_go_on(guard: Guard) -> None:
    head = "PUT /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n"
    with socket.create_connection((HOST, guard.ports["mlflow"]), timeout=30) as raw:
        raw.sendall(f"{head}Authorization: {RIGHT['mlflow']['Authorization']}\r\n\r\n".encode())
        assert raw.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"body")
        answer = b"".join(iter(lambda: raw.recv(1000), b""))
    assert hashlib.sha256(b"body").hexdigest().encode() in answer
    assert guard.send("mlflow", f"{head}\r\n".encode()).startswith(b"HTTP/1.1 401")


def test_who_goes_away_is_not_waited_for(guard: Guard) -> None:
    connection = guard.connection("ray")
    connection.request("GET", "/endless", headers=RIGHT["ray"])
    assert connection.getresponse().read(5) == b"tick\n"
    connection.close()
    assert guard.backends["ray"].left.wait(30)


def test_messages_pass_both_ways(guard: Guard) -> None:
    url = f"ws://{HOST}:{guard.ports['prefect']}/socket?x=1"
    socket = connect(
        url, additional_headers=RIGHT["prefect"], subprotocols=["other", "prefect"], proxy=None, max_size=None  # type: ignore[list-item]
    )  # fmt: skip
    with socket:
        assert socket.subprotocol == "prefect"
        for message in ("text, ü", b"\x00\xff", "", b"x" * (5 << 20)):
            socket.send(message)
            assert socket.recv(timeout=30) == message
        assert socket.ping().wait(30)
    (request, closing) = seen(guard.backends["prefect"], 2)
    assert (request.path, request.headers["Sec-WebSocket-Protocol"]) == ("/socket?x=1", "other,prefect")
    assert (closing.method, closing.path) == ("CLOSE", "1000")


def seen(backend: Backend, count: int) -> list:
    deadline = time.monotonic() + 30
    while len(backend.seen) < count:
        assert time.monotonic() < deadline, backend.seen
        time.sleep(0.02)
    return backend.seen


def test_a_socket_closes_for_the_reason_of_the_service_or_is_refused_with_its_status(guard: Guard) -> None:
    url = f"ws://{HOST}:{guard.ports['prefect']}"
    with connect(f"{url}/socket", additional_headers=RIGHT["prefect"], proxy=None) as socket:
        socket.send("close")
        with pytest.raises(ConnectionClosed) as end:
            socket.recv(timeout=30)
        assert end.value.rcvd is not None
        assert (end.value.rcvd.code, end.value.rcvd.reason) == (1008, "not allowed")
    for status in (404, 200):
        with pytest.raises(InvalidStatus) as refusal:
            connect(f"{url}/kinds?status={status}", additional_headers=RIGHT["prefect"], proxy=None)
        assert refusal.value.response.status_code == max(status, 400)


def test_a_browser_may_not_be_used_by_another_site(guard: Guard) -> None:
    """It adds the login by itself, so the login alone proves nothing there."""
    own = f"{HOST}:{guard.ports['ray']}"
    for origin, status in (
        (f"http://{own}", 200),
        (f"https://{own}", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ):
        headers = basic(f"x:{TOKEN}") | {"Origin": origin}
        assert guard.ask("ray", "/api/jobs/", headers, "POST", b"{}")[0].status == status, origin
        assert guard.ask("ray", "/api/jobs/", {"Origin": origin}, "OPTIONS")[0].status == 401
    with pytest.raises(InvalidStatus) as refusal:
        connect(f"ws://{own}/socket", additional_headers=RIGHT["ray"], origin="http://evil.example", proxy=None)  # type: ignore[arg-type]
    assert refusal.value.response.status_code == 403
    assert len(guard.backends["ray"].seen) == 2


def test_what_is_no_request_to_this_service_goes_no_further(guard: Guard) -> None:
    right = f"Authorization: {RIGHT['prefect']['Authorization']}\r\nConnection: close\r\nHost: x\r\n"
    inner = f"GET /inner HTTP/1.1\r\n{right}\r\n"
    raw = [
        f"GET http://127.0.0.1:22/ HTTP/1.1\r\n{right}\r\n",
        f"CONNECT 127.0.0.1:22 HTTP/1.1\r\n{right}\r\n",
        f"OPTIONS * HTTP/1.1\r\n{right}\r\n",
        f"POST / HTTP/1.1\r\n{right}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
        f"POST / HTTP/1.1\r\n{right}Content-Length: 4\r\nContent-Length: {len(inner)}\r\n\r\n{inner}",
        f"POST / HTTP/1.1\r\n{right}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}",
        f"GET / HTTP/1.1\r\n{right}X: a\n b\x00c\r\n\r\n",
        f"GET / HTTP/1.1\r\n{right} folded: x\r\n\r\n",
        f"GET / HTTP/1.1\r\n{right}Upgrade: websocket\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01",
    ]
    for text in raw:
        answer = guard.send("prefect", text.encode("latin-1"))
        assert answer.split(b"\r\n")[0].split()[1] == b"400", (text, answer)
        assert answer.count(b"HTTP/1.") == 1
    broken = guard.send(
        "prefect", f"POST /digest HTTP/1.1\r\n{right}Transfer-Encoding: chunked\r\n\r\nzz\r\n{inner}".encode()
    )
    assert broken.split()[1] == b"400"
    assert guard.send("prefect", f"GET /\xff\xfe HTTP/1.1\r\n{right}\r\n".encode("latin-1")).split()[1] == b"400"
    assert "/inner" not in {request.path for request in guard.backends["prefect"].seen}
    assert "Traceback" not in guard.log.read_text()


def test_half_an_answer_does_not_look_whole(guard: Guard) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        guard.ask("ray", "/cut", RIGHT["ray"])
    assert "Ray broke off an answer" in guard.log.read_text()


def test_a_service_that_is_down_is_named_to_those_who_may_know(tmp_path: Path) -> None:
    path, names = tmp_path / "credentials.env", list(RIGHT)
    credentials.write_missing(path)
    secrets = credentials.read(path)
    ports = free_ports(6)
    command = [sys.executable, "-m", "infra.local.guard", f"--listen={HOST}", f"--credentials={path}"]
    command += [f"--{name}={ports[index]}:{ports[index + 3]}" for index, name in enumerate(names)]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT)
    down = Guard(process, dict(zip(names, ports, strict=False)), {}, log)
    try:
        await_ports(down)
        right = {
            "Ray": {"Authorization": f"Bearer {secrets['SMOOTH_RAY_TOKEN']}"},
            "MLflow": basic(f"admin:{secrets['SMOOTH_MLFLOW_PASSWORD']}"),
            "Prefect": basic(secrets["SMOOTH_PREFECT_AUTH"]),
        }
        for title, headers in right.items():
            answer, text = down.ask(title.lower(), "/", headers)
            assert (answer.status, text.decode().partition(";")[0]) == (502, f"{title} does not answer")
            assert b"Traceback" not in text
            assert down.ask(title.lower(), "/", {})[0].status == 401
            assert down.ask(title.lower(), "/", basic("ann:ann's own"))[0].status == 401
            with pytest.raises(InvalidStatus) as refusal:
                connect(f"ws://{HOST}:{down.ports[title.lower()]}/s", additional_headers=headers, proxy=None)
            assert refusal.value.response.status_code == 502
        running = psutil.Process(process.pid)
        told = " ".join([*running.cmdline(), *running.environ().values(), log.read_text()])
        assert "Traceback" not in told
        assert not [value for value in secrets.values() if len(value) > 1 and value in told]
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_it_ends_when_asked_whoever_is_connected(guard: Guard) -> None:
    """The last test of this process."""
    url = f"ws://{HOST}:{guard.ports['prefect']}/socket"
    with connect(url, additional_headers=RIGHT["prefect"], proxy=None) as socket:
        connection = guard.connection("ray")
        connection.request("GET", "/endless", headers=RIGHT["ray"])
        assert connection.getresponse().read(5) == b"tick\n"
        begin = time.monotonic()
        guard.process.terminate()
        assert guard.process.wait(60) == 0
        assert time.monotonic() - begin < 30  # it gives them some seconds, not for ever
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)
        connection.close()
    for secret in (TOKEN, PASSWORD, AUTH):
        assert secret not in guard.log.read_text()
