"""A registered model served by `smooth serve` and by MLflow's own command, used by real clients over HTTP."""

from __future__ import annotations

import base64
import io
import itertools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from PIL import Image
from typer.testing import CliRunner

from infra.local.layout import free_ports, program
from smooth.cli import app
from smooth.edit import generate, media
from smooth.edit.model import open_model
from smooth.serve.cli import QUIET
from smooth.serve.order import MOST_BODY
from smooth.studio.server import ENVIRONMENT
from tests.outside import call
from tests.served import is_up, mlflow_server, register, running, smooth, until

NAME, ALIAS = "smooth-diffusion", "production"
URI = f"models:/{NAME}@{ALIAS}"
STEPS, BATCH, QUEUE = 2, 4, 4
PROMPTS = ("a red heart", "a dog", "a cat", "a house")
REQUESTS, IN_FLIGHT = 200, 8


@dataclass(frozen=True)
class Service:
    """What runs, and where."""

    url: str
    metrics: str
    scoring: str
    log: Path
    registry: Popen[bytes]
    process: Popen[bytes]
    root: Path

    def post(self, client: httpx.Client, **order: Any) -> httpx.Response:
        return client.post(f"{self.url}/generate", json={"prompt": "a red heart", "steps": STEPS} | order)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=60).json()
        return found

    def wait(self, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while not found(state := self.health()):
            assert time.monotonic() < deadline, state
            time.sleep(0.1)
        return state


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image).astype(int)


def move_alias(version: int) -> None:
    MlflowClient().set_registered_model_alias(NAME, ALIAS, str(version))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """MLflow's server with versions 1 and 2, the alias on 1; MLflow's scoring server and ours, started side by side."""
    root = tmp_path_factory.mktemp("serving")
    registry_port, scoring_port, port, metrics_port = free_ports(4)
    address = f"http://127.0.0.1:{registry_port}"
    logs = {name: root / f"{name}.log" for name in ("registry", "scoring", "serve")}
    with pytest.MonkeyPatch.context() as patch, running(mlflow_server(root, registry_port), logs["registry"]) as server:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        patch.setenv("SMOOTH_HOME", str(root / "home"))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.chdir(root)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("PATH", f"{Path(program('python')).parent}{os.pathsep}{os.environ['PATH']}")
        until(is_up(f"{address}/health"), server, logs["registry"])
        for scale in (0.05, 0.1):
            register("builtin:tiny", root / "artifacts", scale)
        move_alias(1)
        options = [f"--port={port}", f"--metrics-port={metrics_port}", f"--max-batch={BATCH}", f"--queue={QUEUE}"]
        ours = smooth("serve", *options, "--poll=0.5", "--max-steps=50")
        theirs = [
            *(program("mlflow"), "models", "serve", "-m", URI, "--env-manager=local", "--timeout=600"),
            f"--port={scoring_port}",
        ]
        with running(ours, logs["serve"]) as serving, running(theirs, logs["scoring"]) as scoring:
            scored = f"http://127.0.0.1:{scoring_port}"
            until(is_up(f"{scored}/ping"), scoring, logs["scoring"])
            url = f"http://127.0.0.1:{port}"
            until(is_up(f"{url}/health"), serving, logs["serve"])
            yield Service(url, f"http://127.0.0.1:{metrics_port}/metrics", scored, logs["serve"], server, serving, root)


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=120) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(service: Service) -> dict[tuple[str, int], np.ndarray[Any, np.dtype[np.int64]]]:
    """What each version paints of each prompt, with the prompt's place as seed, one by one."""
    found = {}
    for number in (1, 2):
        edited = open_model(f"models:/{NAME}/{number}", scratch=str(service.root / "expected"))
        pictures = generate.generate(edited.at(), PROMPTS, range(len(PROMPTS)), steps=STEPS, guidance=3.0)
        found |= {(f"{NAME}/{number}", seed): picture.astype(int) for seed, picture in enumerate(pictures)}
    return found


def test_a_clients_picture_is_the_commands(service: Service, client: httpx.Client, tmp_path: Path) -> None:
    order = {"prompt": "a dog", "seed": 7, "steps": 3, "guidance": 2.5, "negative": "blue"}
    response = service.post(client, **order)
    assert response.status_code == 200, response.text
    assert response.headers["x-smooth-model"] == f"{NAME}/1"
    out = tmp_path / "picture.png"
    words = ["--model", URI, "--seed=7", "--steps=3", "--guidance=2.5", "--negative=blue", f"--out={out}", "a dog"]
    assert CliRunner().invoke(app, ["generate", *words]).exit_code == 0
    assert np.abs(pixels(response.content) - pixels(out.read_bytes())).max() <= 1
    told, command = media.read_parameters(response.content)
    assert told["identity"] == media.read_parameters(out.read_bytes())[0]["identity"]
    again = tmp_path / "again.png"
    assert CliRunner().invoke(app, [*command[1:2], f"--out={again}", *command[3:]]).exit_code == 0
    assert (pixels(again.read_bytes()) == pixels(out.read_bytes())).all()


def test_mlflows_own_command_serves_the_commands_pictures(service: Service, tmp_path: Path) -> None:
    """Several clients at once, and the model is loaded with the first picture."""
    params = {"num_inference_steps": 3, "guidance_scale": 2.5, "negative_prompt": "blue"}

    def ask(seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        body = {"dataframe_records": [{"prompt": "a dog", "seed": seed}], "params": params}
        answer = httpx.post(f"{service.scoring}/invocations", json=body, timeout=300)
        assert answer.status_code == 200, answer.text
        return pixels(base64.b64decode(answer.json()["predictions"][0]))

    out = tmp_path / "picture.png"
    words = ["--model", URI, "--steps=3", "--guidance=2.5", "--negative=blue", f"--out={out}", "a dog"]
    assert CliRunner().invoke(app, ["generate", *words, *(f"--seed={seed}" for seed in range(3))]).exit_code == 0
    with ThreadPoolExecutor(3) as pool:
        for index, served in enumerate(pool.map(ask, range(3))):
            wanted = pixels((tmp_path / f"picture-{index + 1}.png").read_bytes())
            assert np.abs(served - wanted).max() <= 1


def test_the_input_example_can_be_sent_as_it_is(service: Service) -> None:
    folder = service.root / "example"
    from mlflow.artifacts import download_artifacts

    example = Path(download_artifacts(f"{URI}/serving_input_example.json", dst_path=str(folder))).read_bytes()
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{service.scoring}/invocations", content=example, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    assert pixels(base64.b64decode(answer.json()["predictions"][0])).shape == (64, 64, 3)


@pytest.mark.parametrize("body", [b"no", b"[]", b'{"dataframe_records": [{"promt": "x"}]}', b'{"inputs": 7}'])
def test_malformed_input_to_mlflows_server_is_refused(service: Service, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{service.scoring}/invocations", content=body, headers=headers, timeout=120)
    assert answer.status_code == 400
    assert answer.json()["message"]


def raw(body: Any, **headers: str) -> tuple[Any, dict[str, str]]:
    return body, {"content-type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}


@pytest.mark.parametrize(
    ("request_of", "status", "message"),
    [
        (raw(b"no"), 400, "the body is no JSON object"),
        (raw(b'{"prompt": "x", "stepz": 3}'), 422, "unknown key stepz; nearest is steps"),
        (raw(b'{"prompt": "x", "steps": 51}'), 422, "this server takes 1 to 50"),
        (raw(b'{"prompt": "x", "size": 72}'), 422, "give a multiple of 8 from 8 to 64 pixels"),
        (raw(b'{"prompt": "x", "size": 60}'), 422, "give a multiple of 8"),
        (raw(b'{"prompt": "x", "size": 1000000000000000000000000}'), 422, "size="),
        (raw(b'{"prompt": "x"}', content_type="text/plain"), 415, "send application/json"),
        (raw(b" " * (MOST_BODY + 1)), 413, "more than"),
        (raw(b'{"prompt": "x"}', host="evil.example"), 400, "host"),
    ],
)
def test_malformed_input_is_refused_with_a_message(
    service: Service, client: httpx.Client, request_of: tuple[bytes, dict[str, str]], status: int, message: str
) -> None:
    body, headers = request_of
    response = client.post(f"{service.url}/generate", content=body, headers=headers)
    assert response.status_code == status
    assert message in response.text


def test_one_that_can_not_be_painted_does_not_harm_its_neighbours(service: Service) -> None:
    orders = [{"seed": 1}, {"seed": 2, "size": 60}, {"seed": 3, "steps": 51}, {"seed": 4}]
    with httpx.Client(timeout=120) as client, ThreadPoolExecutor(len(orders)) as pool:
        statuses = list(pool.map(lambda order: service.post(client, **order).status_code, orders))
    assert statuses == [200, 422, 422, 200]


def test_a_full_queue_says_when_to_come_again(service: Service) -> None:
    count = 4 * BATCH + QUEUE + 12
    limits = httpx.Limits(max_connections=count)
    with httpx.Client(timeout=120, limits=limits) as client, ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda seed: service.post(client, seed=seed, steps=8), range(count)))
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 503}
    assert counts[503] >= 4
    full = next(answer for answer in answers if answer.status_code == 503)
    assert int(full.headers["retry-after"]) >= 1
    assert "the queue is full" in full.json()["error"]
    service.wait(lambda state: bool(state["ready"]))


def test_nothing_is_lost_while_the_alias_moves(service: Service, expected: dict[tuple[str, int], Any]) -> None:
    """200 requests, 8 in flight, and more until the new version has answered 40; the alias moves at the 60th."""
    numbers = itertools.count()
    answers: list[tuple[int, httpx.Response]] = []

    def ask_on() -> None:
        while len(answers) < REQUESTS or served()[f"{NAME}/2"] < 40:
            number = next(numbers)
            assert number < 20 * REQUESTS
            if number == 60:
                move_alias(2)
            seed = number % len(PROMPTS)
            answers.append((seed, service.post(client, prompt=PROMPTS[seed], seed=seed)))

    def served() -> Counter[str]:
        return Counter(answer.headers.get("x-smooth-model", "none") for _, answer in answers)

    with httpx.Client(timeout=120) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
        for ended in [pool.submit(ask_on) for _ in range(IN_FLIGHT)]:
            ended.result()
    assert Counter(answer.status_code for _, answer in answers) == {200: len(answers)}
    for seed, answer in answers:
        wanted = expected[answer.headers["x-smooth-model"], seed]
        assert np.abs(pixels(answer.content) - wanted).max() <= 1
    assert served()[f"{NAME}/1"] >= 60 - IN_FLIGHT
    assert np.abs(expected[f"{NAME}/1", 0] - expected[f"{NAME}/2", 0]).max() > 1
    service.wait(lambda state: state["models"] == [f"{NAME}/2"])


def test_a_version_that_can_not_be_loaded_leaves_the_old_one(service: Service, client: httpx.Client) -> None:
    first = MlflowClient().get_model_version(NAME, "1")
    model = first.source.removeprefix("models:/")
    (weights,) = (service.root / "mlflow-artifacts").glob(f"**/{model}/**/pytorch_lora_weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    broken = MlflowClient().create_model_version(NAME, first.source, model_id=model)
    move_alias(int(broken.version))
    state = service.wait(lambda state: bool(state["problems"]))
    assert f"models:/{NAME}/{broken.version} can't be served" in state["problems"][0]
    assert f"going on with {NAME}/2" in state["problems"][0]
    assert state["ready"]
    assert service.post(client).headers["x-smooth-model"] == f"{NAME}/2"
    move_alias(2)
    service.wait(lambda state: not state["problems"])


def test_everything_is_on_loopback(service: Service) -> None:
    serving = psutil.Process(service.process.pid)
    found = []
    for process in (serving, *serving.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # a worker of Ray that ended meanwhile
            connections = process.net_connections("inet")
            found += [each.laddr for each in connections if each.status == psutil.CONN_LISTEN]
    assert len(found) > 5
    assert {address.ip.removeprefix("::ffff:") for address in found} <= {"127.0.0.1", "::1"}
    nodes = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
    codes = {call("127.0.0.1", address.port, nodes, []) for address in found}
    assert "UNAUTHENTICATED" in codes  # Ray's own part wants a token that nobody else has
    assert "OK" not in codes


def test_prometheus_reads_what_is_counted(service: Service) -> None:
    deadline = time.monotonic() + 120
    while True:
        text = httpx.get(service.metrics, timeout=60).text
        painted = [line for line in text.splitlines() if line.startswith("ray_smooth_serve_pictures_total{")]
        if any(f'model="{NAME}/2"' in line for line in painted):
            break
        assert time.monotonic() < deadline, text[:2000]
        time.sleep(0.5)
    for name in ("batch_count", "batch_seconds_sum", "waiting", "answers_total"):
        assert f"ray_smooth_serve_{name}" in text


def kill_the_painter(service: Service, client: httpx.Client) -> httpx.Response:
    """In the midst of a picture; what its client was told."""
    (painter,) = [
        process
        for process in psutil.Process(service.process.pid).children(recursive=True)
        if process.name().startswith("ray::ServeRepli") and "Painter" in " ".join(process.cmdline())
    ]
    with ThreadPoolExecutor(1) as pool:
        before = painter.cpu_times().user
        answer = pool.submit(service.post, client, steps=50)
        while painter.cpu_times().user < before + 0.2:  # until it paints
            assert not answer.done(), answer.result().text
            time.sleep(0.02)
        painter.kill()
        return answer.result()


def test_a_killed_painter_is_followed_by_another(service: Service, client: httpx.Client) -> None:
    told = kill_the_painter(service, client)
    killed = time.monotonic()
    assert (told.status_code, int(told.headers["retry-after"]) >= 1) == (503, True)
    while (again := service.post(client)).status_code == 503:
        assert time.monotonic() < killed + 240, service.log.read_text()[-3000:]
        time.sleep(0.5)
    print(f"\na picture again {time.monotonic() - killed:.0f} s after the painter was killed")
    assert (again.status_code, again.headers["x-smooth-model"]) == (200, f"{NAME}/2")


def test_serving_goes_on_without_the_registry(service: Service, client: httpx.Client) -> None:
    """One of the last tests: the registry's server ends here."""
    service.registry.terminate()
    service.registry.wait(60)
    state = service.wait(lambda state: bool(state["problems"]))
    assert "does not tell what" in state["problems"][0]
    assert state["ready"]
    assert service.post(client).headers["x-smooth-model"] == f"{NAME}/2"
    assert "Traceback" not in service.log.read_text()


def test_a_killed_painter_costs_its_requests_a_503(service: Service, client: httpx.Client) -> None:
    """At the end, too: a new painter asks the registry, which is gone."""
    told = kill_the_painter(service, client)
    assert (told.status_code, int(told.headers["retry-after"]) >= 1) == (503, True)
    service.wait(lambda state: not state["ready"])


def test_a_model_that_is_not_there_is_told_at_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ENVIRONMENT, *QUIET):
        monkeypatch.setenv(name, "0")  # what the command sets is unset again at the end
    first, second = free_ports(2)
    ports = [f"--port={first}", f"--metrics-port={second}"]
    result = CliRunner().invoke(app, ["serve", "--model=models:/nobody@nowhere", *ports])
    assert result.exit_code == 2
    assert "does not tell what models:/nobody@nowhere is" in result.stderr
    result = CliRunner().invoke(app, ["serve", "--model=builtin:tiny", *ports])
    assert "--model builtin:tiny: give a registered one" in result.stderr
    assert "RAY_AUTH_TOKEN" not in os.environ  # a command that serves nothing leaves this process's Ray alone
    assert shutil.which("mlflow")
