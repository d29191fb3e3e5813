"""Every port that the local cluster listens on is in a list here, and a stranger on the network gets nothing from one.

The stranger is a network namespace of the test's own at the other end of a cable: what it reaches, other machines do.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infra import credentials
from infra.local import processes
from infra.local.layout import HOST, PROJECT
from infra.local.options import ANYWHERE
from tests import hosts
from tests.clusters import ScratchCluster

pytestmark = hosts.needed

HERE, THERE = (f"10.213.{os.getpid() % 256}.{number}" for number in (1, 2))
SECONDS = 60  # for an answer where others compute
PROBE = PROJECT / "tests" / "outside.py"

# Service, what of it listens -> addresses. "asked" is where BIND says; by default there is no guard.
LISTENERS: dict[tuple[str, str], list[str]] = {
    ("ray", "gcs_server"): [HOST],
    ("ray", "raylet"): [HOST] * 2,  # node manager, object manager
    ("ray", "client server"): [HOST],
    ("ray", "dashboard"): [HOST] * 2,  # pages and job API; its metrics
    ("ray", "autoscaler"): [HOST],  # metrics
    ("ray", "ray::DashboardAgent"): [HOST] * 4,  # HTTP, gRPC, metrics; gRPC as the jobs' own client
    ("ray", "ray::RuntimeEnvAgent"): [HOST],
    ("ray-node-1", "raylet"): [HOST] * 2,
    ("ray-node-1", "ray::DashboardAgent"): [HOST] * 3,
    ("ray-node-1", "ray::RuntimeEnvAgent"): [HOST],
    ("mlflow", "mlflow"): [HOST],
    ("prefect", "prefect server"): [HOST],
    ("worker", "prefect worker"): [HOST],
    ("guard", "guard"): ["asked"] * 3,
}
TASK = "task"
"""Drivers and workers of Ray's jobs: a port each, on loopback."""

ROLES = {  # what the command line tells
    "gcs_server": "/gcs_server ",
    "raylet": "/raylet/raylet ",
    "client server": "ray.util.client.server",
    "dashboard": "/dashboard/dashboard.py",
    "autoscaler": "/autoscaler/",
    "ray::DashboardAgent": "ray::DashboardAgent",
    "ray::RuntimeEnvAgent": "ray::RuntimeEnvAgent",
    "mlflow": "-m uvicorn",
    "prefect server": "prefect server start",
    "prefect worker": "prefect worker start",
    "guard": "-m infra.local.guard",
}
CALLS = (  # one of each of Ray's gRPC services
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.ReporterService/GetTraceback",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
)
HOLD = "import ray, time; ray.init(log_to_driver=False); ray.get(ray.remote(num_cpus=0)(time.sleep).remote(600))"


@dataclass(frozen=True, order=True)
class Listener:
    """A port that somebody could connect to."""

    service: str
    role: str
    address: str
    port: int


def listeners(cluster: ScratchCluster) -> list[Listener]:
    """All TCP ports that processes of the cluster listen on, and all UDP ports that they receive on."""
    found = set()
    names = [*cluster.status(), "ray-node-1"]
    for service in names:
        record = processes.read_record(cluster.layout.record(service))
        for process in processes.members(record, cluster.layout.marker(service)):
            try:
                sockets, command = process.net_connections("inet"), " ".join([*process.cmdline(), ""])
            except psutil.NoSuchProcess:
                continue
            role = next((role for role, text in ROLES.items() if text in command), TASK)
            found |= {
                Listener(service, role, item.laddr.ip.removeprefix("::ffff:"), item.laddr.port)
                for item in sockets
                if item.status == psutil.CONN_LISTEN or (item.type.name == "SOCK_DGRAM" and not item.raddr)
            }
    return sorted(found)


def listed(without: str) -> Counter[tuple[str, str, str]]:
    """The list as it is for a cluster that has not the service ``without``."""
    return Counter(
        (service, role, ANYWHERE if address == "asked" else address)
        for (service, role), addresses in LISTENERS.items()
        for address in addresses
        if service != without
    )


def lasting(found: list[Listener]) -> Counter[tuple[str, str, str]]:
    """What goes on listening whatever runs on the cluster."""
    return Counter((item.service, item.role, item.address) for item in found if item.role != TASK)


def check_listed(found: list[Listener], without: str) -> None:
    """Each is in the list, and nothing of the list is missing."""
    assert lasting(found) == listed(without)
    assert {item.address for item in found if item.role == TASK} <= {HOST}


class Stranger:
    """A host that shares nothing with this one but a cable."""

    def __init__(self) -> None:
        self.name = f"smooth-{os.getpid()}-stranger"

    def __enter__(self) -> Stranger:
        near = f"smo{os.getpid()}"[:15]
        self._ip("netns", "add", self.name)
        self._ip("link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        self._ip("address", "add", f"{HERE}/30", "dev", near)
        self._ip("link", "set", near, "up")
        self._ip("-netns", self.name, "address", "add", f"{THERE}/30", "dev", "eth0")
        self._ip("-netns", self.name, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._ip("netns", "delete", self.name)  # the cable goes with it

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def ask(self, **asked: Any) -> dict[str, Any]:
        """What this machine answers him."""
        return probe(self.place, asked | {"host": HERE})

    @property
    def place(self) -> list[str]:
        """What a command is preceded by to run there."""
        return ["ip", "netns", "exec", self.name]


def probe(before: list[str], asked: dict[str, Any]) -> dict[str, Any]:
    result = subprocess.run(
        [*before, sys.executable, str(PROBE)], input=json.dumps(asked), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def stranger() -> Iterator[Stranger]:
    with Stranger() as made:
        yield made


@contextmanager
def job(cluster: ScratchCluster) -> Iterator[None]:
    """A job of Ray with a task that goes on."""
    jobs = f"{cluster.state['ray_dashboard']}/api/jobs/"
    token = {"Authorization": f"Bearer {cluster.layout.token.read_text()}"}
    entrypoint = f'{sys.executable} -c "{HOLD}"'
    answer = httpx.post(jobs, headers=token, json={"entrypoint": entrypoint}, timeout=SECONDS).raise_for_status()
    try:
        yield
    finally:
        httpx.post(f"{jobs}{answer.json()['submission_id']}/stop", headers=token, timeout=SECONDS).raise_for_status()


def test_by_default_nobody_outside_reaches_anything(cluster: ScratchCluster, stranger: Stranger) -> None:
    up = cluster.local("up", SMOOTH_WORKERS="1")
    assert up.returncode == 0, up.stdout + up.stderr
    assert cluster.status()["ray-node-1"]["status"] == "healthy"
    with job(cluster):
        found = listeners_with_a_job(cluster, without="guard")
        check_listed(found, without="guard")
        ports = [item.port for item in found]
        assert set(stranger.ask(ports=ports)["ports"]) == {"ConnectionRefusedError"}
        ports = [item.port for item in found if item.role != TASK]  # idle workers come and go
        assert set(probe([], {"host": HOST, "ports": ports})["ports"]) == {"open"}
        check_ray_wants_its_token(cluster, found)


def listeners_with_a_job(cluster: ScratchCluster, without: str) -> list[Listener]:
    """The same, once the job has its supervisor, its driver and the worker that sleeps, and all agents listen."""
    deadline = time.monotonic() + 300
    while True:
        found = listeners(cluster)
        tasks, missing = Counter(item.role for item in found)[TASK], listed(without) - lasting(found)
        if tasks >= 3 and not missing:
            return found
        assert time.monotonic() < deadline, f"{tasks} of 3 tasks listen; missing: {missing}"
        time.sleep(0.5)


def check_ray_wants_its_token(cluster: ScratchCluster, found: list[Listener]) -> None:
    """Other users of this machine do reach loopback."""
    ray = [item for item in found if item.service.startswith("ray")]
    token = [["authorization", f"Bearer {cluster.layout.token.read_text()}"]]
    wrong = [["authorization", f"Bearer {'f' * 64}"]]
    calls: list[list[Any]] = [
        [item.port, method, sent] for item in ray for method in CALLS for sent in ([], wrong, token)
    ]
    pages: list[list[Any]] = [
        ["GET", item.port, path, {}] for item in ray for path in ("/metrics", "/api/jobs/", "/logs")
    ]
    answers = probe([], {"host": HOST, "grpc": calls, "http": pages})
    codes: dict[tuple[int, str], list[str]] = {}
    for (number, method, _), code in zip(calls, answers["grpc"], strict=True):
        codes.setdefault((number, method), []).append(code)
    statuses: dict[int, list[int]] = {}
    for (_, number, _, _), (status, _) in zip(pages, answers["http"], strict=True):
        statuses.setdefault(number, []).append(status)
    open_pages, tasks = [], 0
    for item in ray:
        of_port = [codes[item.port, method] for method in CALLS]
        if item.role == TASK:  # an idle one may end between two questions
            of_port = [triple for triple in of_port if "UNAVAILABLE" not in triple]
        served = [triple for triple in of_port if set(triple) != {"UNIMPLEMENTED"}]
        if {code for triple in of_port for code in triple} <= {"UNAVAILABLE"}:  # it speaks HTTP, or has ended
            if item.role == TASK:
                assert set(statuses[item.port]) == {0}
            elif 200 in statuses[item.port]:
                open_pages.append((item.service, item.role))
            else:
                assert set(statuses[item.port]) <= {401, 403, 404}, (item, statuses[item.port])
            continue
        assert served or item.role == TASK, item
        tasks += bool(served) and item.role == TASK
        for without, mistaken, right in served:
            assert (without, mistaken) == ("UNAUTHENTICATED", "UNAUTHENTICATED"), item
            assert right != "UNAUTHENTICATED", item
    assert tasks
    # Ray's metrics have no guard but loopback.
    agents = [("ray", "ray::DashboardAgent"), ("ray-node-1", "ray::DashboardAgent")]
    assert sorted(open_pages) == sorted([("ray", "autoscaler"), ("ray", "dashboard"), *agents])


def basic(login: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


# What the services themselves show to anybody, and what they guard. Prefect's openapi.json lists the rest of it.
PATHS = {
    "prefect": ["/", "/v2/", "/ui-settings", "/docs", "/redoc", "/openapi.json", "/api/health", "/api/ready", "/x"],
    "mlflow": [
        *("/", "/health", "/version", "/static-files/index.html", "/api/3.0/mlflow/server-info", "/favicon.ico", "/x"),
        *("/graphql", "/signup", "/get-artifact", "/model-versions/get-artifact", "/metrics", "/docs", "/openapi.json"),
        *(
            "/api/2.0/mlflow/experiments/search",
            "/ajax-api/2.0/mlflow/experiments/search",
            "/mcp",
            "/ajax-api/3.0/jobs",
        ),
        *("/api/2.0/mlflow/runs/search", "/api/2.0/mlflow/registered-models/search", "/api/2.0/mlflow/users/create"),
        *("/api/2.0/mlflow-artifacts/artifacts", "/api/2.0/mlflow-artifacts/artifacts/0/x", "/v1/traces", "/gateway/"),
        *("/static-files/../version", "/health/../version", "/static-files/%2e%2e/version", "//health"),
    ],
    "ray": [
        *(
            "/",
            "/favicon.ico",
            "/static/js/main.js",
            "/api/authentication_mode",
            "/api/gcs_healthz",
            "/-/healthz",
            "/x",
        ),
        *("/api/jobs/", "/api/version", "/nodes", "/logs", "/api/v0/logs", "/api/v0/actors", "/metrics", "/log_proxy"),
        *("/api/cluster_status", "/api/serve/applications/", "/api/packages/gcs/x", "/timezone", "/api/grafana_health"),
        *("/api/local_raylet_healthz", "/api/authenticate"),
    ],
}
TITLES = {"prefect": "Prefect", "mlflow": "MLflow", "ray": "Ray"}
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")


@pytest.fixture(scope="module")
def open_cluster(cluster: ScratchCluster, stranger: Stranger) -> Iterator[ScratchCluster]:
    """The same cluster, for others than this machine, too."""
    assert stranger.name
    cluster.local("down")
    up = cluster.local("up", SMOOTH_BIND=ANYWHERE)
    assert up.returncode == 0, up.stdout + up.stderr
    secrets = credentials.read(cluster.layout.credentials)
    assert not [value for value in secrets.values() if len(value) > 1 and value in up.stdout + up.stderr]
    yield cluster
    cluster.local("down")


def ports_of(cluster: ScratchCluster) -> dict[str, int]:
    return {name: int(part["url"].rpartition(":")[2]) for name, part in cluster.status().items() if part["url"]}


def logins(cluster: ScratchCluster) -> dict[str, dict[str, str]]:
    secrets = credentials.read(cluster.layout.credentials)
    return {
        "ray": {"Authorization": f"Bearer {secrets['SMOOTH_RAY_TOKEN']}"},
        "mlflow": basic(f"admin:{secrets['SMOOTH_MLFLOW_PASSWORD']}"),
        "prefect": basic(secrets["SMOOTH_PREFECT_AUTH"]),
    }


WRONG = {
    "ray": {"Authorization": f"Bearer {'f' * 64}"},
    "mlflow": basic("admin:password1234"),
    "prefect": basic("smooth:wrong"),
}


def test_open_to_others_only_three_ports_are_reached(open_cluster: ScratchCluster, stranger: Stranger) -> None:
    with job(open_cluster):
        found = listeners_with_a_job(open_cluster, without="ray-node-1")
        check_listed(found, without="ray-node-1")
        answers = stranger.ask(ports=[item.port for item in found])["ports"]
    reached = {item.port for item, answer in zip(found, answers, strict=True) if answer == "open"}
    assert reached == set(ports_of(open_cluster).values())
    assert set(answers) == {"open", "ConnectionRefusedError"}


def test_open_to_others_nothing_at_all_answers_without_its_credential(
    open_cluster: ScratchCluster, stranger: Stranger
) -> None:
    ports, right = ports_of(open_cluster), logins(open_cluster)
    listed = httpx.get(f"http://{HOST}:{ports['prefect']}/openapi.json", headers=right["prefect"], timeout=SECONDS)
    every = [path.replace("{", "").replace("}", "") for path in listed.json()["paths"]]
    assert len(every) > 100
    paths = [(service, path) for service in PATHS for path in PATHS[service]]
    asked = [[method, ports[service], path, {}] for service, path in paths for method in METHODS]
    asked += [["GET", ports[service], path, WRONG[service]] for service, path in paths]
    asked += [[method, ports["prefect"], path, {}] for path in every for method in ("GET", "POST")]
    asked += [["GET", ports[service], "/", right[other]] for service in right for other in set(right) - {service}]
    texts = {number: f"{TITLES[service]} wants its credential\n" for service, number in ports.items()}
    for item, (status, text) in zip(asked, stranger.ask(http=asked)["http"], strict=True):
        assert (status, text) == (401, "" if item[0] == "HEAD" else texts[item[1]]), item
    sockets = [f"{HERE}:{ports['prefect']}/api/{name}" for name in ("events/in", "events/out", "logs/out")]
    sockets.append(f"{HERE}:{ports['ray']}/api/jobs/x/logs/tail")
    secret = credentials.read(open_cluster.layout.credentials)["SMOOTH_PREFECT_AUTH"]
    first = {"type": "auth", "token": secret}  # which comes too late
    unopened = [[f"ws://{url}", first, headers] for url in sockets for headers in ({}, basic("smooth:wrong"))]
    assert set(stranger.ask(websockets=unopened)["websockets"]) == {"status 401"}


def test_open_to_others_all_answers_to_its_credential(open_cluster: ScratchCluster, stranger: Stranger) -> None:
    ports, right = ports_of(open_cluster), logins(open_cluster)
    token = credentials.read(open_cluster.layout.credentials)["SMOOTH_RAY_TOKEN"]
    mlflow, users = ports["mlflow"], f"http://{HOST}:{ports['mlflow']}/api/2.0/mlflow/users/create"
    ann = {"username": "ann", "password": "ann's own password"}
    httpx.post(users, headers=right["mlflow"], json=ann, timeout=SECONDS).raise_for_status()
    own = basic(f"{ann['username']}:{ann['password']}")
    good = [
        *(["GET", ports[service], path, right[service]] for service in PATHS for path in PATHS[service][:2]),
        ["GET", ports["prefect"], "/api/health", right["prefect"]],
        ["POST", ports["prefect"], "/api/flow_runs/filter", right["prefect"]],
        ["POST", mlflow, "/api/2.0/mlflow/runs/search", right["mlflow"]],
        ["GET", mlflow, "/version", right["mlflow"] | {"Origin": f"http://{HERE}:{mlflow}"}],
        ["GET", mlflow, "/api/2.0/mlflow/experiments/search?max_results=5", own],
        ["GET", ports["ray"], "/api/jobs/", right["ray"]],
        ["GET", ports["ray"], "/api/jobs/", basic(f"anybody:{token}")],
    ]
    for item, (status, text) in zip(good, stranger.ask(http=good)["http"], strict=True):
        assert status == 200, (item[:3], status, text)
    bad = [
        ["GET", mlflow, "/health", basic("ann:another")],
        ["GET", mlflow, "/api/2.0/mlflow/users/get?username=admin", own],
        ["GET", mlflow, "/", right["mlflow"] | {"Host": "elsewhere.example"}],
        ["POST", ports["ray"], "/api/jobs/", right["ray"] | {"Origin": "http://elsewhere.example"}],
    ]
    assert [status for status, _ in stranger.ask(http=bad)["http"]] == [401, 403, 403, 403]


def test_open_to_others_sockets_still_want_their_first_message(
    open_cluster: ScratchCluster, stranger: Stranger
) -> None:
    number, right = ports_of(open_cluster)["prefect"], logins(open_cluster)["prefect"]
    secret = credentials.read(open_cluster.layout.credentials)["SMOOTH_PREFECT_AUTH"]
    urls = [f"ws://{HERE}:{number}/api/{name}" for name in ("events/in", "events/out", "logs/out")]
    first = [{"type": "auth", "token": None}, {"type": "auth", "token": "smooth:wrong"}, {"type": "filter"}]
    answers = stranger.ask(websockets=[[url, message, right] for url in urls for message in first])["websockets"]
    assert set(answers) == {"closed 1008"}
    right_ones = [[url, {"type": "auth", "token": secret}, right] for url in urls]
    answers = stranger.ask(websockets=right_ones)["websockets"]
    assert {json.loads(answer)["type"] for answer in answers} == {"auth_success"}


CLIENTS = """
import asyncio, hashlib, os, pathlib, sys, mlflow
from prefect import get_client
from prefect.events import get_events_subscriber
from prefect.logging.clients import get_logs_subscriber
from ray.job_submission import JobSubmissionClient

big = pathlib.Path(sys.argv[1]) / "big.bin"
big.write_bytes(os.urandom(8 << 20))
digest = hashlib.sha256(big.read_bytes()).hexdigest()
mlflow.set_experiment("outside")
with mlflow.start_run() as run:
    mlflow.log_artifact(str(big))
found = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/big.bin", dst_path=sys.argv[1] + "/back")
assert hashlib.sha256(pathlib.Path(found).read_bytes()).hexdigest() == digest

async def ask():
    async with get_client() as client:
        assert len(await client.read_deployments()) > 2
        await client.read_flow_runs(limit=5)
    async with get_events_subscriber(), get_logs_subscriber():
        pass

async def follow():
    jobs = JobSubmissionClient(os.environ["RAY_API_SERVER_ADDRESS"])
    job = jobs.submit_job(entrypoint="echo said outside; sleep 1; echo and again")
    return "".join([text async for text in jobs.tail_job_logs(job)])

asyncio.run(ask())
text = asyncio.run(follow())
assert "said outside" in text and "and again" in text, text
print("all well")
"""


def test_open_to_others_their_clients_work(open_cluster: ScratchCluster, stranger: Stranger, tmp_path: Path) -> None:
    """As on another machine, with the variables that the README names."""
    ports, secrets = ports_of(open_cluster), credentials.read(open_cluster.layout.credentials)
    (tmp_path / "token").write_text(secrets["SMOOTH_RAY_TOKEN"])
    (tmp_path / "token").chmod(0o600)
    theirs = {
        "MLFLOW_TRACKING_URI": f"http://{HERE}:{ports['mlflow']}",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": secrets["SMOOTH_MLFLOW_PASSWORD"],
        "PREFECT_API_URL": f"http://{HERE}:{ports['prefect']}/api",
        "PREFECT_API_AUTH_STRING": secrets["SMOOTH_PREFECT_AUTH"],
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps(logins(open_cluster)["prefect"]),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "RAY_API_SERVER_ADDRESS": f"http://{HERE}:{ports['ray']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
    }
    result = subprocess.run(
        [*stranger.place, sys.executable, "-c", CLIENTS, str(tmp_path)],
        cwd=tmp_path, env=open_cluster.environment | theirs, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.stdout.endswith("all well\n"), result.stdout + result.stderr


CLIENT = """
import mlflow
from smooth import tracking
mlflow.set_tracking_uri(tracking.tracking_uri())
print(len(mlflow.search_experiments()), "experiments")
"""

WATCH = """
import asyncio
from prefect.logging.clients import get_logs_subscriber  # as `prefect deployment run --watch` does
async def watch():
    async with get_logs_subscriber():
        print("open")
asyncio.run(watch())
"""


def test_open_to_others_the_same_commands_work_here(open_cluster: ScratchCluster, tmp_path: Path) -> None:
    status = open_cluster.status()
    assert {part["status"] for part in status.values()} == {"healthy"}, status
    assert "nothing was changed" in open_cluster.local("up").stdout
    found = open_cluster.run("-c", CLIENT)
    assert "experiments" in found.stdout, found.stderr
    # A job of Ray, whose environment is the head's, writes to MLflow, too.
    jobs, right = f"{open_cluster.state['ray_dashboard']}/api/jobs/", logins(open_cluster)["ray"]
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    entrypoint = f"cd {PROJECT} && PYTHONPATH={PROJECT} {sys.executable} {script}"
    made = httpx.post(jobs, headers=right, json={"entrypoint": entrypoint}, timeout=SECONDS).raise_for_status().json()
    # Prefect's own command finds the auth string in the file that the checkout's pyproject.toml names.
    prefect = [str(Path(sys.executable).with_name("prefect")), "deployment", "inspect", "smooth-train/full"]
    state = open_cluster.state
    environment = open_cluster.environment | {"PREFECT_API_URL": state["prefect_api"]}
    profiles = {"PREFECT_PROFILES_PATH": str(open_cluster.layout.prefect_profiles)}
    for extra, expected in ((profiles, 0), ({"PREFECT_PROFILES_PATH": str(tmp_path / "none.toml")}, 1)):
        result = subprocess.run(prefect, cwd=PROJECT, env=environment | extra, capture_output=True, text=True)
        assert result.returncode == expected, result.stdout + result.stderr
    watching = subprocess.run(
        [sys.executable, "-c", WATCH], cwd=PROJECT, env=environment | profiles, capture_output=True, text=True
    )
    assert watching.stdout == "open\n", watching.stdout + watching.stderr
    deadline = time.monotonic() + 600
    job = {"status": "PENDING"}
    while job["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, job
        time.sleep(0.5)
        job = httpx.get(f"{jobs}{made['submission_id']}", headers=right, timeout=SECONDS).raise_for_status().json()
    assert job["status"] == "SUCCEEDED", job


def test_open_to_others_no_secret_is_anywhere_but_in_its_files(open_cluster: ScratchCluster) -> None:
    layout = open_cluster.layout
    own = {layout.credentials, layout.token, layout.prefect_profiles}
    for path in (*own, layout.options):
        assert path.stat().st_mode & 0o077 == 0, path
    secrets = [value.encode() for value in credentials.read(layout.credentials).values() if len(value) > 1]
    sent = [login["Authorization"].partition(" ")[2].encode() for login in logins(open_cluster).values()]
    secrets += sent
    written = [path for root in (layout.home, layout.ray_folder) for path in root.rglob("*") if path.is_file()]
    assert len(written) > 20
    for path in set(written) - own:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # what runs put it away meanwhile
            continue
        assert not [secret for secret in secrets if secret in content], path
    shown = " ".join(word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or [])
    assert not [secret for secret in secrets if secret.decode() in shown]


def test_open_to_others_a_dead_guard_is_noticed_and_put_back_alone(open_cluster: ScratchCluster) -> None:
    before, ports = open_cluster.status(), ports_of(open_cluster)
    psutil.Process(before["guard"]["pid"]).kill()
    sick = {name: part["status"] for name, part in open_cluster.status().items() if part["status"] != "healthy"}
    assert sick == {"guard": "stopped"}
    result = open_cluster.local("up")
    assert "started guard in" in result.stdout, result.stdout + result.stderr
    after = open_cluster.status()
    assert {part["status"] for part in after.values()} == {"healthy"}
    assert [name for name in after if after[name]["pid"] != before[name]["pid"]] == ["guard"]
    assert ports_of(open_cluster) == ports
