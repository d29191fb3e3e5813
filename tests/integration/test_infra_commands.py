"""Each command of compose.yaml, started on this machine from what the image copies: healthy with its credential alone.

SQLite and a folder stand for PostgreSQL and the store, through the same variables; ports and addresses are free ones.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient

from infra.local import http, processes
from infra.local.cluster import DEPLOYMENT
from infra.local.layout import free_ports, program
from infra.local.processes import MARKER
from infra.local.services import OURS
from tests.deployments import SECRETS, compose, copied, dockerfile
from tests.served import register

START_SECONDS = 240  # where others compute
RESTARTS = 2  # of `restart: unless-stopped`
SERVICES = compose()["services"]
SECRET_FILES = {name: SECRETS[item["environment"]] for name, item in compose()["secrets"].items()}
PORTS = ("mlflow:5000", "prefect:4200", "ray-head:8265", "ray-head:6379", "worker:8080", "ray-worker:52365",
         "ray-ingest:52365", "serve:8000")  # fmt: skip


class Machine:
    """This machine in the place of the containers."""

    def __init__(self, root: Path, project: Path) -> None:
        self.root, self.project = root, project
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        (root / "secrets").mkdir()
        for name, value in SECRET_FILES.items():
            (root / "secrets" / name).write_text(value)

    def here(self, text: str, service: str) -> str:
        """A word of the compose file as it is on this machine."""
        for name, number in self.ports.items():
            host, port = name.split(":")
            text = re.sub(rf"(?<=[/=]){name}\b", f"127.0.0.1:{number}", text)
            if host == service:
                text = re.sub(rf"(?<=127\.0\.0\.1:){port}\b|(?<=port=){port}\b|^{port}$", str(number), text)
        text = text.replace("/run/secrets", str(self.root / "secrets")).replace("/opt/smooth", str(self.project))
        return text.replace("0.0.0.0", "127.0.0.1")

    def environment(self, service: str, **changed: str) -> dict[str, str]:
        """The service's variables and only what a container would have beside them."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith((*OURS, "AWS_", "PG"))}
        named = {key: self.here(value, service) for key, value in SERVICES[service].get("environment", {}).items()}
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        fixed = {"HOME": str(home), "SMOOTH_PROJECT": str(self.project), "PYTHONPATH": str(self.project)}
        path = f"{Path(program('python')).parent}{os.pathsep}{inherited['PATH']}"
        quiet = dict(step.split("=", 1) for step in IMAGE_VARIABLES if not step.startswith(("PATH=", "HF_", "SMOOTH_")))
        return inherited | quiet | named | fixed | {"PATH": path, MARKER: self.marker(service)} | changed

    def marker(self, service: str) -> str:
        return f"{self.root}#{service}"

    def command(self, service: str) -> list[str]:
        words = [self.here(word, service) for word in SERVICES[service]["command"]]
        return [str(self.project / "infra" / "entrypoint.sh"), *words]

    @contextmanager
    def running(self, service: str, *more: str, **changed: str) -> Iterator[None]:
        """The service, from its first healthy answer on."""
        log = self.root / f"{service}.log"
        child = self._start(service, more, changed, log)
        try:
            deadline, again = time.monotonic() + START_SECONDS, RESTARTS
            while not self.is_healthy(service):
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                if child.poll() is not None:  # as the engine does: Ray gives up after 30 s where others compute
                    assert again, log.read_text()[-3000:]
                    again -= 1
                    processes.stop(None, self.marker(service))
                    child = self._start(service, more, changed, log)
                time.sleep(2)  # each look is a Python of its own
            yield
        finally:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(processes.GRACE_SECONDS)
            processes.stop(None, self.marker(service))
            child.wait()
        written = log.read_text()
        assert not [name for name, value in SECRET_FILES.items() if value in written], f"{service} logs a secret"

    def _start(
        self, service: str, more: tuple[str, ...], changed: dict[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        with log.open("a") as output:
            return subprocess.Popen(
                [*self.command(service), *more],
                env=self.environment(service, **changed),
                cwd=self.project,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_healthy(self, service: str) -> bool:
        """What the image's HEALTHCHECK says in this service's container."""
        environment = self.environment(service)
        assert environment["SMOOTH_HEALTH_URL"]
        asked = subprocess.run([program("python"), *HEALTH[1:]], cwd=self.project, env=environment, capture_output=True)
        return asked.returncode == 0

    def run(self, service: str, *command: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """A command to its end, with the variables of a service."""
        return subprocess.run(
            command,
            cwd=self.project,
            env=self.environment(service, **changed),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )


IMAGE_VARIABLES = next(step.value for step in dockerfile() if step.name == "ENV" and step.stage == "base").split()
HEALTH = json.loads(next(step.value for step in dockerfile() if step.name == "HEALTHCHECK").partition("CMD ")[2])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /opt/smooth as the Dockerfile fills it."""
    return copied(tmp_path_factory.mktemp("image") / "smooth")


@pytest.fixture
def machine(tmp_path: Path, project: Path) -> Machine:
    return Machine(tmp_path, project)


def status(url: str, *, headers: dict[str, str] | None = None, body: Any = None) -> int | None:
    """What the server answers; on a busy machine it may take longer than one request waits."""
    for _ in range(12):
        if (answer := http.request(url, headers=headers, body=body)) is not None:
            return answer[0]
    return None


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[Machine]:
    """A machine with MLflow."""
    machine = Machine(tmp_path_factory.mktemp("tracked"), project)
    config = machine.root / "auth.ini"
    written = (machine.project / "infra/mlflow-auth.ini").read_text()
    config.write_text(re.sub(r"(?m)^database_uri = .*", f"database_uri = sqlite:///{machine.root}/auth.db", written))
    changed = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{machine.root}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(machine.root / "artifacts"),
    }
    with machine.running("mlflow", "--workers=1", **changed):  # SQLite has one writer
        yield machine


ADMIN = basic("admin", SECRET_FILES["mlflow_password"])


def test_mlflow_wants_its_password(tracked: Machine) -> None:
    search = f"http://127.0.0.1:{tracked.ports['mlflow:5000']}/api/2.0/mlflow/experiments/search"
    body = {"max_results": 1}
    assert status(search, body=body) == 401
    assert status(search, body=body, headers=basic("admin", "password1234")) == 401
    assert status(search, body=body, headers=ADMIN) == 200
    # As the other containers name it, and as a page of another site would have a browser ask.
    assert status(search, body=body, headers=ADMIN | {"Host": "mlflow:5000"}) == 200
    assert status(search, body=body, headers=ADMIN | {"Host": "elsewhere.example"}) == 403


def test_mlflow_keeps_artifacts_where_it_puts_them(tracked: Machine) -> None:
    api = f"http://127.0.0.1:{tracked.ports['mlflow:5000']}/api/2.0/mlflow"
    create = f"{api}/experiments/create"
    for number, location in enumerate(("file:///etc", str(tracked.root), "mlflow-artifacts:/../x", "s3://bucket/x")):
        body = {"name": f"hostile-{number}", "artifact_location": location}
        assert status(create, headers=ADMIN, body=body) == 400, location
    assert status(create, headers=ADMIN, body={"name": "harmless"}) == 200
    assert status(f"{api}/registered-models/create", headers=ADMIN, body={"name": "hostile"}) == 200
    version = {"name": "hostile", "source": "file:///etc"}
    assert status(f"{api}/model-versions/create", headers=ADMIN, body=version) == 400


def test_the_served_model_wants_its_token(tracked: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"USERNAME": "admin", "PASSWORD": SECRET_FILES["mlflow_password"]}
    named |= {"URI": f"http://127.0.0.1:{tracked.ports['mlflow:5000']}"}
    for name, value in named.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    monkeypatch.chdir(tracked.root)
    register("builtin:tiny", tracked.root / "trained", 0.05)
    MlflowClient().set_registered_model_alias("smooth-diffusion", "production", "1")
    url = f"http://127.0.0.1:{tracked.ports['serve:8000']}"
    order = {"prompt": "a red heart", "steps": 2}
    with tracked.running("serve", f"--metrics-port={free_ports(1)[0]}"):
        # The last three are Serve's own.
        for path, body in (("health", None), ("generate", order), ("-/healthz", None), ("-/routes", None), ("x", None)):
            assert status(f"{url}/{path}", body=body) == 401
            assert status(f"{url}/{path}", body=body, headers={"Authorization": f"Bearer {'0' * 64}"}) == 401
        right = {"Authorization": f"Bearer {SECRET_FILES['serve_token']}"}
        assert status(f"{url}/-/healthz", headers=right) == 200
        answer = httpx.post(f"{url}/generate", json=order, headers=right, timeout=60)
        assert (answer.status_code, answer.headers["X-Smooth-Model"]) == (200, "smooth-diffusion/1"), answer.text
        assert answer.content.startswith(b"\x89PNG")


def test_a_served_model_that_nobody_promoted_is_told_of(tracked: Machine) -> None:
    command = tracked.command("serve")
    found = tracked.run("serve", *command, "--model=models:/nobody@production", SMOOTH_SERVE_TOKEN_FILE="/none")
    assert "error: SMOOTH_SERVE_TOKEN_FILE names /none, which can't be read" in found.stderr
    found = tracked.run("serve", *command, "--model=models:/nobody@production")
    assert found.returncode != 0
    assert "does not tell what models:/nobody@production is" in found.stderr


def test_prefect_its_deployments_and_its_worker_want_the_auth_string(machine: Machine) -> None:
    database = f"sqlite+aiosqlite:///{machine.root}/prefect.db"
    pages = str(machine.root / "pages")
    api = f"http://127.0.0.1:{machine.ports['prefect:4200']}/api"
    with machine.running(
        "prefect", PREFECT_SERVER_DATABASE_CONNECTION_URL=database, PREFECT_SERVER_UI_STATIC_DIRECTORY=pages
    ):
        right = basic(*SECRET_FILES["prefect_auth"].split(":"))
        deployment = f"{api}/deployments/name/{DEPLOYMENT}"
        assert status(deployment) == 401
        assert status(deployment, headers=basic("smooth", "wrong")) == 401
        assert status(deployment, headers=right) == 404
        made = machine.run("deployments", *machine.command("deployments"))
        assert made.returncode == 0, made.stdout + made.stderr
        assert status(deployment, headers=right) == 200
        found = httpx.get(deployment, headers=right, timeout=60).json()
        (nightly,) = found["schedules"]
        assert (nightly["slug"], nightly["active"]) == ("nightly", False)
        schedule = f"{api}/deployments/{found['id']}/schedules/{nightly['id']}"
        httpx.patch(schedule, headers=right, json={"active": True}, timeout=60).raise_for_status()
        pool = f"{api}/work_pools/local-pool"
        by_hand = {"is_paused": True, "concurrency_limit": 3}
        httpx.patch(pool, headers=right, json=by_hand, timeout=60).raise_for_status()
        again = machine.run("deployments", *machine.command("deployments"))
        assert again.returncode == 0, again.stdout + again.stderr
        schedules = httpx.get(deployment, headers=right, timeout=60).json()["schedules"]
        assert [each["active"] for each in schedules] == [True]  # what a person switched on stays on
        kept = httpx.get(pool, headers=right, timeout=60).json()
        assert {name: kept[name] for name in by_hand} == by_hand
        held = _hold_a_place(api, right)
        assert list((machine.project / ".smooth/prefect/concurrency_leases").glob(f"{held}.json"))
        with machine.running("worker"):
            workers = f"{api}/work_pools/local-pool/workers/filter"
            assert status(workers, body={}) == 401
            deadline = time.monotonic() + START_SECONDS  # it answers before it has found its pool
            known: list[tuple[str, str]] = []
            while known != [("worker", "ONLINE")] and time.monotonic() < deadline:
                time.sleep(0.3)
                answer = http.request(workers, headers=right, body={})
                found = json.loads(answer[1]) if answer is not None else []
                known = [(worker["name"], worker["status"]) for worker in found]
            assert known == [("worker", "ONLINE")]


def _hold_a_place(api: str, headers: dict[str, str]) -> str:
    """Take the only place under a limit, and return the lease's id."""
    limits = f"{api}/v2/concurrency_limits"
    assert status(f"{limits}/", headers=headers, body={"name": "one", "limit": 1}) == 201
    body = {"slots": 1, "names": ["one"], "lease_duration": 60}
    answer = httpx.post(f"{limits}/increment-with-lease", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["lease_id"])


WHERE = """
import sys
import ray
from smooth.config import IngestConfig
from smooth.data import dispatch

def where(job):
    return {"node": ray.get_runtime_context().get_node_id()}

dispatch.fetch = where
jobs = [dispatch.ShardJob(None, None, "", "", 0, 3, number, 1) for number in range(4)]
try:
    config = IngestConfig(url_list="list.parquet", node_resource=sys.argv[1])
    seen = {found["node"] for found in dispatch.fetch_shards(jobs, config)}
except ValueError as error:
    sys.exit(f"error: {error}")
may = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("ingest")}
print(len(ray.nodes()), len(may), seen == may)
"""


def test_ray_wants_its_token_and_shards_are_fetched_by_the_nodes_that_may(machine: Machine) -> None:
    memory = "--object-store-memory=100000000"

    def inner(service: str) -> list[str]:  # nodes of one machine can't share these
        names = ("metrics-export-port", "dashboard-agent-grpc-port")
        ports = [f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
        if agent := machine.ports.get(f"{service}:52365"):
            ports.append(f"--dashboard-agent-listen-port={agent}")
        return [*ports, "--node-ip-address=127.0.0.1", memory]

    jobs = f"http://127.0.0.1:{machine.ports['ray-head:8265']}/api/jobs/"
    client = free_ports(2)
    # Not under pytest's tmp_path: the sockets' paths would be too long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = [*inner("ray-head"), f"--temp-dir={folder}", f"--ray-client-server-port={client[0]}"]
        with machine.running("ray-head", *head, f"--dashboard-agent-listen-port={client[1]}"):
            assert status(jobs) == 401
            assert status(jobs, headers={"Authorization": "Bearer of-nobody"}) in (401, 403)
            assert status(jobs, headers={"Authorization": f"Bearer {SECRET_FILES['ray_token']}"}) == 200
            address = f"127.0.0.1:{machine.ports['ray-head:6379']}"
            asked = ("ray-worker", program("ray"), "status", f"--address={address}")
            assert machine.run(*asked, RAY_AUTH_TOKEN="f" * 64).returncode != 0
            worker = machine.running("ray-worker", *inner("ray-worker"))
            with worker, machine.running("ray-ingest", *inner("ray-ingest")):
                fetch = ("ray-worker", program("python"), "-c", WHERE)
                found = machine.run(*fetch, "ingest", RAY_ADDRESS=address)
                assert found.stdout.splitlines()[-1:] == ["3 1 True"], found.stderr[-3000:]
                found = machine.run(*fetch, "nowhere", RAY_ADDRESS=address)
                assert "no node of the cluster has the Ray resource 'nowhere'" in found.stderr


def test_ones_own_machine_starts_rays_node_from_the_checkout(machine: Machine) -> None:
    missing = machine.run("ray-head", str(machine.project / "infra/ray-node.sh"), "--head")
    assert missing.returncode == 2
    assert "python3 -m infra.credentials infra/cluster.env" in missing.stderr
    credentials = machine.root / "cluster.env"
    made = machine.run("bucket", program("python"), "-m", "infra.credentials", str(credentials))
    assert made.returncode == 0, made.stderr
    binaries = machine.root / "bin"
    binaries.mkdir()
    # What the script hands on, in place of ray itself: the command above starts the real one with the same variables.
    echo = 'echo "$@" "$RAY_AUTH_MODE" "$RAY_AUTH_TOKEN" ${SMOOTH_RAY_TOKEN-}'
    (binaries / "ray").write_text(f"#!/usr/bin/env bash\n{echo}\n")
    (binaries / "ray").chmod(0o755)
    found = machine.run(
        "bucket",
        str(machine.project / "infra/ray-node.sh"),
        "--head",
        SMOOTH_BIN=str(binaries),
        SMOOTH_CREDENTIALS_FILE=str(credentials),
    )
    token = dict(line.split("=", 1) for line in credentials.read_text().split())["SMOOTH_RAY_TOKEN"]
    assert found.stdout == f"start --disable-usage-stats --head token {token}\n"
