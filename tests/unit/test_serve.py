"""Serving without a service: what is refused and how, which requests share a batch, who may ask."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient, WebSocketDisconnect
from typer.testing import CliRunner

from infra.local.layout import free_ports
from smooth.cli import app as cli
from smooth.edit import cli as edit_commands
from smooth.edit import generate, media
from smooth.edit.options import told_command
from smooth.listening import host_names
from smooth.models.pipeline import load_pipeline
from smooth.serve import paint, web
from smooth.serve.batching import Batcher
from smooth.serve.order import MOST_BODY, Limits, Order, OrderError, read_order
from smooth.serve.settings import take_token

LIMITS = Limits(steps=50)
TOKEN = "a-token-of-twenty-letters"


def order(**values: Any) -> bytes:
    return json.dumps({"prompt": "a red heart"} | values).encode()


def test_what_is_left_out_is_as_the_command_has_it() -> None:
    defaults = {name: each.default for name, each in inspect.signature(edit_commands.generate).parameters.items()}
    found = read_order(order(), LIMITS).model_dump()
    assert [defaults["seed"][0], *(defaults[name] for name in ("steps", "guidance", "negative", "size"))] == [
        found[name] for name in ("seed", "steps", "guidance", "negative", "size")
    ]


REFUSED = [
    (b"", 400, "the body is no JSON object"),
    (b"prompt", 400, "the body is no JSON object"),
    (b"[1]", 400, "the body is no JSON object"),
    (b"\xff\xfe", 400, "the body is no JSON object"),
    (b"[" * 5000, 400, "the body is no JSON object"),
    (b'{"prompt": "\\ud800"}', 400, "the body is no JSON object"),
    (b"{}", 422, "prompt is missing"),
    (order(promt="x"), 422, "unknown key promt; nearest is prompt"),
    (order(prompt=7), 422, "prompt=7: input should be a valid string"),
    (order(prompt="x" * 2001), 422, "at most 2000 characters"),
    (order(negative="x" * 2001), 422, "negative='xxx"),
    (order(seed=-1), 422, "seed=-1: input should be greater than or equal to 0"),
    (order(seed=2**63), 422, "seed=9223372036854775808: input should be less than or equal to"),
    (order(seed=10**400), 422, "seed="),
    (order(seed=1.5), 422, "seed=1.5: input should be a valid integer"),
    (order(seed=True), 422, "seed=True: input should be a valid integer"),
    (order(steps=0), 422, "steps=0: input should be greater than or equal to 1"),
    (order(steps=51), 422, "steps=51: this server takes 1 to 50"),
    (order(guidance=float("nan")), 422, "guidance=nan"),
    (order(guidance=101), 422, "guidance=101"),
    (order(size="64"), 422, "size='64': input should be a valid integer"),
]


@pytest.mark.parametrize(("body", "status", "message"), REFUSED)
def test_a_malformed_order_is_refused_with_what_and_where(body: bytes, status: int, message: str) -> None:
    with pytest.raises(OrderError) as refused:
        read_order(body, LIMITS)
    assert refused.value.status == status
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400


@given(st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(sorted(Order.model_fields)) | st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_whatever_is_sent_is_an_order_or_a_refusal(body: bytes) -> None:
    told = ""
    try:
        steps = read_order(body, LIMITS).steps
    except OrderError as refusal:
        steps, told = refusal.status, str(refusal)
    assert steps in (400, 422) if told else steps <= LIMITS.steps
    assert "\n" not in told


async def painted(_order: Order) -> web.Painted:
    return b"PNG", "smooth-diffusion/5"


class Answers:
    """The application with its own counts."""

    def __init__(self, token: str | None = None, paint: Any = painted, hosts: list[str] | None = None) -> None:
        self.counts: list[int] = []
        digest = None if token is None else web.digest(token)
        health = {"ready": False}
        names = hosts or (["testserver"] if token is None else None)
        application = web.application(paint, lambda: health, self.counts.append, LIMITS, names, digest)
        self.client = TestClient(application, raise_server_exceptions=False)

    def post(self, content: Any = None, **headers: str) -> Any:
        sent = {"content-type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        return self.client.post("/generate", content=order() if content is None else content, headers=sent)


def test_a_picture_names_its_version() -> None:
    answers = Answers()
    response = answers.post()
    assert (response.status_code, response.content) == (200, b"PNG")
    assert response.headers["x-smooth-model"] == "smooth-diffusion/5"
    assert response.headers["content-type"] == "image/png"
    assert answers.counts == [200]
    assert answers.client.get("/health").status_code == 503


def test_bodies_beyond_the_limit_are_not_read() -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 2**14
            yield b" " * 2**14

    answers = Answers()
    for content in (b" " * (MOST_BODY + 1), endless()):
        response = answers.post(content)
        assert response.status_code == 413
        assert response.json()["error"] == f"the body has more than {MOST_BODY} bytes"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "message"),
    [
        ("POST", "/generate", {"content-type": "text/plain"}, 415, "Content-Type is text/plain; send application/json"),
        ("POST", "/generate", {}, 415, "Content-Type is missing; send application/json"),
        ("GET", "/generate", {}, 405, "method not allowed: there are POST /generate and GET /health"),
        ("GET", "/", {}, 404, "not found: there are POST /generate and GET /health"),
    ],
)
def test_other_requests_are_told_what_there_is(
    method: str, path: str, headers: dict[str, str], status: int, message: str
) -> None:
    response = Answers().client.request(method, path, content=order(), headers=headers)
    assert (response.status_code, response.json()["error"]) == (status, message)


def test_another_sites_name_is_refused() -> None:
    assert Answers().post(host="evil.example").status_code == 400


@pytest.mark.parametrize(
    ("listening", "called", "status"),
    [
        ("::1", "[::1]:8000", 200),
        ("0:0:0:0:0:0:0:1", "[::1]", 200),
        ("127.0.0.1", "[::1]:8000", 200),
        ("127.1.2.3", "127.1.2.3:8000", 200),
        ("::1", "localhost", 200),
        ("::1", "[::2]:8000", 400),
        ("127.0.0.1", "127.1.2.3", 400),
    ],
)
def test_a_server_of_this_machine_goes_by_its_addresses(listening: str, called: str, status: int) -> None:
    assert Answers(hosts=host_names(listening)).post(host=called).status_code == status


def test_a_server_that_others_reach_goes_by_any_name() -> None:
    assert host_names("0.0.0.0") is host_names("::") is host_names("example.org") is None


@pytest.mark.parametrize("sent", [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN])
def test_nothing_is_answered_without_the_token(sent: str | None) -> None:
    answers = Answers(TOKEN)
    headers = {} if sent is None else {"authorization": sent}
    for response in (answers.post(**headers), answers.client.get("/health", headers=headers)):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in response.text
    with pytest.raises(WebSocketDisconnect) as closed, answers.client.websocket_connect("/generate", headers=headers):
        pass
    assert closed.value.code == 1008
    assert answers.post(authorization=f"Bearer {TOKEN}").status_code == 200


def test_a_full_queue_says_when_to_come_again() -> None:
    async def busy(_order: Order) -> web.Painted:
        raise web.BusyError("the queue is full", 7)

    response = Answers(paint=busy).post()
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert response.json()["error"] == "the queue is full; come again in 7 s"


def test_what_goes_wrong_in_painting_is_told_as_json_and_counted() -> None:
    async def broken(_order: Order) -> web.Painted:
        raise RuntimeError("CUDA out of memory, and a path")

    answers = Answers(paint=broken)
    response = answers.post()
    assert response.status_code == 500
    assert response.json()["error"] == "the picture could not be painted; the service's log tells why"
    assert answers.counts == [500]


def test_pictures_and_metrics_want_two_ports() -> None:
    result = CliRunner().invoke(cli, ["serve", "--port", "8001"])
    assert (result.exit_code, "--port 8001 is --metrics-port, too" in result.stderr) == (2, True)


def test_a_taken_port_is_told_by_the_option_that_gives_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"--port": free_ports(1)[0], "--metrics-port": taken.getsockname()[1]}
        result = CliRunner().invoke(cli, ["serve", *(f"{name}={port}" for name, port in ports.items())])
    assert result.exit_code == 2
    assert f"can't listen on 127.0.0.1:{ports['--metrics-port']}: " in result.stderr
    assert result.stderr.endswith("give another --metrics-port\n")


def test_a_host_that_others_reach_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(cli, ["serve", "--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "set SMOOTH_SERVE_TOKEN to the token that clients must send" in result.stderr
    assert take_token("127.0.0.1") is None
    monkeypatch.setenv("SMOOTH_SERVE_TOKEN", "short")
    with pytest.raises(ValueError, match="at least 16 ASCII characters") as refused:
        take_token("0.0.0.0")
    assert "short" not in str(refused.value)
    monkeypatch.setenv("SMOOTH_SERVE_TOKEN", TOKEN)
    assert take_token("0.0.0.0") == TOKEN
    assert take_token("127.0.0.1") is None  # no process started from now on inherits it


def batched(
    submitted: list[tuple[str, int]], most: int, wait: float = 0.01
) -> tuple[list[list[int]], list[int | BaseException]]:
    """Batches of items submitted at once, and what came of each."""
    batches: list[list[int]] = []

    async def work(items: list[int]) -> list[int]:
        batches.append(items)
        await asyncio.sleep(0.01)
        if 13 in items:
            raise RuntimeError("thirteen")
        return [10 * item for item in items]

    async def run() -> list[int | BaseException]:
        batcher: Batcher[int, int] = Batcher(work, most, wait)
        results = await asyncio.gather(*(batcher.submit(*each) for each in submitted), return_exceptions=True)
        assert batcher.waiting == 0
        return results

    return batches, asyncio.run(run())


def test_what_is_alike_shares_a_batch_and_the_oldest_goes_first() -> None:
    batches, results = batched([("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5), ("a", 6)], most=3)
    assert batches == [[1, 3, 5], [2, 4], [6]]
    assert results == [10, 20, 30, 40, 50, 60]


def test_a_failed_batch_fails_its_own_items_alone() -> None:
    _, results = batched([("a", 13), ("a", 2), ("b", 3)], most=8)
    assert [str(result) for result in results] == ["thirteen", "thirteen", "30"]


def held(items: list[int], most: int, then: Callable[[list[asyncio.Task[int]]], Any]) -> list[list[int]]:
    """The batches where all but the first item come, and ``then`` happens, while the first one is worked on."""
    batches: list[list[int]] = []

    async def run() -> None:
        release = asyncio.Event()

        async def work(batch: list[int]) -> list[int]:
            batches.append(batch)
            await release.wait()
            return batch

        batcher: Batcher[int, int] = Batcher(work, most, 0.001)
        tasks = [asyncio.create_task(batcher.submit("a", items[0]))]
        while not batches:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(batcher.submit("a", item)) for item in items[1:]]
        await asyncio.sleep(0.01)
        then(tasks)
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    return batches


def test_what_comes_while_a_batch_is_worked_on_goes_together() -> None:
    """Steady traffic: an idle worker waits in vain, a busy one finds a full batch when it is done."""
    assert held(list(range(9)), 4, lambda tasks: None) == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_who_goes_away_is_not_worked_for() -> None:
    assert held([0, 1, 2], 4, lambda tasks: tasks[1].cancel()) == [[0], [2]]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline("builtin:tiny")


def test_a_batch_paints_what_the_command_paints_of_each_alone(pipeline: Any) -> None:
    wanted = [
        Order(prompt="a red heart", seed=7, steps=3),
        Order(prompt="a dog", seed=2**63 - 1, steps=3, negative="blue"),
        Order(prompt="a cat", steps=3),
        Order(prompt="", seed=1, steps=3, negative="blue"),
    ]
    together = paint.paint(pipeline, wanted)
    for each, picture in zip(wanted, together, strict=True):
        alone = generate.generate(
            pipeline, [each.prompt], [each.seed], steps=3, guidance=each.guidance, negative=each.negative
        )[0]
        assert np.abs(alone.astype(int) - picture).max() <= 1


@pytest.mark.parametrize("size", [8, 24, 64, 72])
def test_every_size_that_is_let_through_can_be_painted(pipeline: Any, size: int) -> None:
    asked = Order(prompt="a red heart", steps=1, size=size)
    paint.check_order(pipeline, asked, Limits(size=72))
    assert paint.paint(pipeline, [asked, asked]).shape == (2, size, size, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 72}, "size=72: give a multiple of 8 from 8 to 64 pixels"),
        ({"size": 60}, "size=60: give a multiple of 8"),
        ({"steps": 1001}, "steps=1001: give 1 to 1000"),
    ],
)
def test_what_the_model_can_not_paint_is_refused(pipeline: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(OrderError, match=message):
        paint.check_order(pipeline, Order(prompt="a red heart", **values), Limits(steps=5000))


def test_orders_of_other_settings_do_not_share_a_batch() -> None:
    first = Order(prompt="a")
    assert first.group == Order(prompt="b", seed=3, negative="c").group
    assert len({first.group, *(Order(prompt="a", **each).group for each in ({"steps": 2}, {"size": 8}))}) == 3
    assert Order(prompt="a", guidance=2).group != first.group


def test_the_png_tells_the_command(tmp_path: Any) -> None:
    class Known:
        uri = "models:/smooth-diffusion/5"

        class edited:  # noqa: N801
            identity = "abc"

    asked = Order(prompt="--a", seed=7, size=64)
    path = tmp_path / "picture.png"
    path.write_bytes(paint.png(Known, asked, np.zeros((8, 8, 3), np.uint8)))  # type: ignore[arg-type]
    assert media.read_parameters(path.read_bytes())[0]["identity"] == "abc"
    words = told_command(str(path))
    assert words[:2] == ["smooth", "generate"]
    assert words[-2:] == ["--", "--a"]
    assert {"--model=models:/smooth-diffusion/5", "--seed=7", "--size=64", "--negative="} <= set(words)
