"""`smooth doctor`: each check's bad case, provoked for real on this machine."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from huggingface_hub import constants
from typer.testing import CliRunner

from infra.local import layout
from smooth.cli import app
from smooth.config import RunConfig
from smooth.doctor import clock, machine, services, software, weights
from smooth.doctor.finding import GIB, Finding
from smooth.evaluate import networks

LOOPBACK = "127.0.0.1"
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")
REMOTE = "model.base=someone/some-model"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, caches and a working directory of the test's own; the hub's name is nobody's."""
    for name in (*VARIABLES, *(port.variable for port in services.PORTS)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMOOTH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{LOOPBACK}:{closed_port()}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def closed_port() -> int:
    return layout.free_ports(1)[0]


def config(*overrides: str) -> RunConfig:
    return RunConfig.load("tiny", list(overrides))


class Answering(BaseHTTPRequestHandler):
    """Answers everything alike."""

    status, headers_, body, skew = 200, dict[str, str](), b"{}", 0.0
    seen: ClassVar[list[str | None]] = []

    def _answer(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        for name, value in self.headers_.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    do_GET = do_POST = do_HEAD = _answer  # noqa: N815 - http.server's names

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() + self.skew, usegmt=True)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def server(tls: ssl.SSLContext | None = None, **answer: Any) -> Iterator[str]:
    handler = type("Handler", (Answering,), {"headers_" if key == "headers" else key: v for key, v in answer.items()})
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as listening:
        if tls is not None:
            listening.socket = tls.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://{LOOPBACK}:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of a few bytes; needs the right to mount."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def record(home: Path, **addresses: str) -> None:
    """What the local cluster writes down while it is up."""
    (home / "cluster").mkdir(parents=True, exist_ok=True)
    (home / "cluster" / "state.json").write_text(json.dumps(addresses))


def only(findings: list[Finding], check: str) -> Finding:
    (found,) = (finding for finding in findings if finding.check == check)
    return found


# Software


def test_a_package_of_another_version_and_a_missing_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("PyYAML==1.0\nrich==15.0.0\n# a comment==2\n")
    assert software.packages(lock).level == "warning"
    assert "1 of 2 have other versions: PyYAML 6" in software.packages(lock).found
    lock.write_text("no-such-package==1.0\n")
    assert software.packages(lock) == Finding(
        "packages", "error", "1 of 1 are missing: no-such-package 1.0", software.REINSTALL
    )
    assert software.packages(tmp_path / "none").level == "warning"
    assert software.packages().found.startswith("all ")


def test_the_backport_that_breaks_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.backport().level == "ok"
    (tmp_path / "dataclasses-0.6.dist-info").mkdir()
    (tmp_path / "dataclasses-0.6.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: dataclasses\nVersion: 0.6\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert software.backport().level == "error"
    assert "dataclasses 0.6" in software.backport().found


# Machine


def test_a_disk_without_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "8m") as small:
        (found, artifacts) = (
            finding for finding in machine.disk(config(f"storage.root={small}")) if finding.check == "disk"
        )
        assert (found.level, artifacts.level) == ("ok", "error")
        assert "0.0 GiB free at " in artifacts.found
        assert f"make room in {small}" in artifacts.mend
    assert only(machine.disk(config()), "disk").level == "ok"
    assert only(machine.disk(config("storage.root=s3://bucket/smooth")), "disk").found.endswith("1.0 are needed")


def test_a_full_temporary_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "small", "1m") as small:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        assert only(machine.disk(config()), "temporary").level == "ok"
        (small / "large").write_bytes(bytes(1000 << 10))
        found = only(machine.disk(config()), "temporary")
    assert (found.level, found.found) == ("error", f"{small} is 98% full")


def test_what_a_run_writes_is_bounded_by_its_config() -> None:
    more = machine.disk_bytes(config("evaluate.pictures=1000000"))
    assert more - machine.disk_bytes(config("evaluate.pictures=2")) == 2 * 999_998 * 64 * 64 * 3
    full = machine.disk_bytes(config("train.method=full", "train.best_checkpoints=0", "train.last_checkpoints=1"))
    assert full - machine.disk_bytes(config()) == 2 * 4 * machine.UNET_BYTES


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.memory(config("evaluate.actors=10000"))
    assert found.level == "error"
    assert "10000 processes" in found.found
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "memory.max")
    found = machine.memory(config())
    assert found.level == "error"
    assert found.found.startswith("1.0 of 1.0 GiB free")


def test_too_little_shared_memory(tmp_path: Path) -> None:
    with small_disk(tmp_path / "shm", "64m") as shm:  # what a container has
        found = machine.shared_memory(shm)
    assert found.level == "warning"
    assert "--shm-size" in found.mend
    assert machine.shared_memory(tmp_path / "none").level == "warning"


@pytest.mark.parametrize(("soft", "hard", "level"), [(256, 256, "error"), (1024, 4096, "warning"), (1024, 9000, "ok")])
def test_few_open_files(soft: int, hard: int, level: str) -> None:
    code = "from smooth.doctor import machine; print(machine.open_files().level)"
    limited = f"ulimit -Sn {soft} && ulimit -Hn {hard} && exec {sys.executable} -c '{code}'"
    environment = os.environ | {"PYTHONPATH": str(layout.PROJECT)}
    result = subprocess.run(["bash", "-c", limited], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == level


GPU = "NVIDIA H100 80GB HBM3, {driver}, 81559, 1024"


@pytest.mark.parametrize(
    ("script", "overrides", "level", "text"),
    [
        (None, [], "ok", "none on this machine, and preset tiny asks for 0"),
        (None, ["train.gpus_per_worker=1"], "warning", "none on this machine, preset tiny asks for 2"),
        (f"echo '{GPU}'", ["train.gpus_per_worker=1"], "warning", "1 on this machine, preset tiny asks for 2"),
        (f"echo '{GPU}'", [], "ok", "NVIDIA H100 80GB HBM3, driver 580.65.06, 80 GiB, 1 in use"),
        (f"echo '{GPU}'".replace("{driver}", "535.1"), [], "error", "torch's CUDA 13 needs driver 580"),
        ("echo couldn\\'t communicate with the driver; exit 9", [], "error", "couldn't communicate with the driver"),
    ],
)
def test_gpus(
    script: str | None,
    overrides: list[str],
    level: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n" + script.replace("{driver}", "580.65.06") + "\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    (found,) = machine.gpus(config(*overrides))
    assert found.level == level
    assert text in found.found
    assert bool(found.mend) == (level != "ok")


# Clock


@pytest.mark.parametrize(("skew", "level"), [(-3600, "error"), (3600, "error"), (100, "warning"), (0, "ok")])
def test_the_clock_against_a_server(skew: float, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(skew=skew) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        found = clock.clock()
    assert found.level == level
    assert ("behind MLflow" in found.found) == (skew > 0)
    assert ("ahead of MLflow" in found.found) == (skew < 0)


def test_the_hub_is_believed_before_a_service_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as url, server(skew=-7200) as hub:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setattr(constants, "ENDPOINT", hub)
        assert " s ahead of the hub" in clock.clock().found


def test_a_clock_that_nobody_can_confirm_is_unknown() -> None:
    found = clock.clock()
    assert found.level == "warning"
    assert found.found.startswith("unknown, nobody to compare with (the hub: ")


# Weights


def test_a_base_model_that_is_not_there(tmp_path: Path) -> None:
    assert weights.base(config()).level == "ok"
    found = weights.base(config(f"model.base={tmp_path}/none"))
    assert found.level == "error"
    assert "no diffusers pipeline there" in found.found


@pytest.mark.parametrize(
    ("answer", "level", "text"),
    [
        ({"body": json.dumps({"id": "someone/some-model"}).encode()}, "ok", "of the hub"),
        ({"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}, "error", "the hub knows no someone/some-model"),
        ({"status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}}, "error", "has no revision None"),
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "error", "asks for consent"),
        ({"status": 500}, "error", "the hub can't be asked (HfHubHTTPError"),
    ],
)
def test_what_the_hub_says(answer: dict[str, Any], level: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(**answer) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        found = weights.base(config(REMOTE))
    assert found.level == level
    assert text in found.found


def test_a_hub_out_of_reach() -> None:
    found = weights.base(config(REMOTE))
    assert found.level == "error"
    assert "is not at hand and the hub can't be asked (ConnectError" in found.found
    assert found.mend.startswith("fetch it where the hub can be reached, `hf download someone/some-model`")


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tls=self_signed(tmp_path)) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        found = weights.base(config(REMOTE))
    assert found.level == "error"
    assert found.mend.startswith("a certificate is not trusted: see to the clock")


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    now = datetime.now(UTC)
    builder = builder.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(secret + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def test_networks_that_are_missing_or_wrong(tmp_path: Path) -> None:
    found = weights.judges(config())
    assert {finding.level for finding in found} == {"warning"}
    assert str(tmp_path / "torch") in only(found, "metric inception").mend
    assert str(tmp_path / "torch") in only(found, "metric lpips").mend
    place = Path(networks.hub_path(networks.INCEPTION_FILE))
    place.parent.mkdir(parents=True)
    place.write_bytes(b"half a download")
    wrong = only(weights.judges(config()), "metric inception")
    assert wrong.level == "error"
    assert "fetch it again" in wrong.found
    named = only(weights.judges(config(f"evaluate.clip={tmp_path}/none")), "metric clip")
    assert named.level == "error"
    assert "evaluate.clip" in named.found


# Services


def test_the_ports_are_those_of_the_local_cluster() -> None:
    assert [(port.variable, port.default) for port in services.PORTS] == [
        (port.variable, port.default) for port in layout.PORTS
    ]


def test_a_taken_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        number = taken.getsockname()[1]
        monkeypatch.setenv("SMOOTH_MLFLOW_PORT", str(number))
        found = only(services.ports(), "port of MLflow")
        assert (found.level, found.found) == ("error", f"{number} is taken by another program")
        assert "SMOOTH_MLFLOW_PORT" in found.mend
        record(tmp_path / "home", mlflow_uri=f"http://{LOOPBACK}:{number}")
        found = only(services.ports(), "port of MLflow")
        assert (found.level, found.found) == ("ok", f"{number}, in use by this cluster")
    monkeypatch.setenv("SMOOTH_PREFECT_PORT", "many")
    assert only(services.ports(), "port of Prefect").level == "error"


@pytest.mark.parametrize(
    ("answer", "level", "text"),
    [
        ({"body": b"[]"}, "ok", "answers"),
        ({"status": 401}, "error", "wants a credential"),
        ({"status": 503}, "error", "answers 503"),
    ],
)
def test_services_that_answer(
    answer: dict[str, Any], level: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("a-secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with server(**answer) as url:
        record(tmp_path / "home", ray_dashboard=url, mlflow_uri=url, prefect_api=f"{url}/api")
        found = services.health()
    assert [finding.check for finding in found] == ["Ray", "MLflow", "Prefect"]
    assert {finding.level for finding in found} == {level}
    assert all(text in finding.found for finding in found)
    assert "a-secret" not in repr(found)


def test_the_clusters_passwords_go_to_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials.env").write_text("SMOOTH_MLFLOW_PASSWORD=hidden\nSMOOTH_PREFECT_AUTH=smooth:hidden\n")
    basic = {
        "mlflow_uri": f"Basic {base64.b64encode(b'admin:hidden').decode()}",
        "prefect_api": f"Basic {base64.b64encode(b'smooth:hidden').decode()}",
    }
    for service, variable in (("mlflow_uri", "MLFLOW_TRACKING_URI"), ("prefect_api", "PREFECT_API_URL")):
        with server() as own, server() as other:
            record(tmp_path / "home", credentials=str(tmp_path / "credentials.env"), **{service: own})
            Answering.seen.clear()
            services.health()
            monkeypatch.setenv(variable, other)
            services.health()
            monkeypatch.delenv(variable)
        assert Answering.seen == [basic[service], None]


def test_services_that_do_not_answer_or_are_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    (down,) = services.health()
    assert down.level == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hidden@{LOOPBACK}:{closed_port()}")
    found = services.health()
    assert [finding.level for finding in found] == ["warning", "error", "warning"]
    assert "does not answer" in only(found, "MLflow").found
    assert "hidden" not in repr(found)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert only(services.health(), "MLflow").level == "ok"


def test_a_credential_that_others_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert services.credentials() == [Finding("credentials", "ok", "none here")]
    token, environment = tmp_path / "home" / "cluster" / "ray.token", tmp_path / "infra" / "cluster.env"
    for path in (token, environment):
        path.parent.mkdir(parents=True)
        path.write_text("secret")
        path.chmod(0o600)
    assert [finding.level for finding in services.credentials()] == ["ok", "ok"]
    token.chmod(0o640)
    environment.chmod(0o604)
    found = services.credentials()
    assert [finding.level for finding in found] == ["error", "error"]
    assert all(finding.mend.startswith("chmod 600 ") for finding in found)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert "none is not there" in services.credentials()[0].found


# The command


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *words])
    return result.exit_code, result.stdout


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_exit_status_tells_an_error(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = invoke(*words, "-o", "evaluate.actors=1", "-o", "train.workers=1")
    assert code == 0
    with socket.create_server((LOOPBACK, 0)) as taken:
        monkeypatch.setenv("SMOOTH_RAY_PORT", str(taken.getsockname()[1]))
        code, text = invoke(*words)
    assert code == 1
    assert "is taken by another program" in text


def test_json_holds_what_the_lines_say() -> None:
    _, text = invoke("--json")
    _, lines = invoke()
    findings = json.loads(text)
    assert {finding["level"] for finding in findings} <= {"ok", "warning", "error"}
    assert all(bool(finding["mend"]) == (finding["level"] != "ok") for finding in findings)
    assert all(finding["check"] in lines for finding in findings)
    assert len(findings) >= 18


def test_an_unknown_preset_is_a_users_mistake() -> None:
    assert invoke("--preset", "tini")[0] == 2


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys\nfrom smooth.config import RunConfig\nfrom smooth.doctor.cli import examine\n"
        "examine(RunConfig.load('tiny'))\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'diffusers', 'prefect') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(layout.PROJECT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
