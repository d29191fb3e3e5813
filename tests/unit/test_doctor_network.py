"""What `smooth doctor` asks others: the clock, the hub, the services; each bad answer given for real, on loopback."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from huggingface_hub import constants

from infra.local import layout
from smooth.doctor import clock, services, weights
from smooth.doctor.finding import Finding
from smooth.evaluate import networks
from smooth.listening import CLUSTER_PORTS
from tests.doctored import LOOPBACK, REMOTE, Answering, closed_port, config, only, record, server
from tests.doctored import alone as alone

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
    variables = [port.variable for port in services.PORTS]
    assert variables == [port.variable for port in layout.PORTS] == list(CLUSTER_PORTS)


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
    found = only(services.ports(), "port of MLflow")  # a reboot leaves the record
    assert (found.level, found.found) == ("error", f"the cluster was at {number}, where nobody listens now")
    with socket.create_server(("127.0.0.2", 0)) as elsewhere:
        record(tmp_path / "home", mlflow_uri=f"http://127.0.0.2:{elsewhere.getsockname()[1]}")
        assert only(services.ports(), "port of MLflow").level == "ok"  # BIND was an address of its own
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
    sent = {
        "mlflow_uri": f"Basic {base64.b64encode(b'admin:hidden').decode()}",
        "prefect_api": f"Basic {base64.b64encode(b'smooth:hidden').decode()}",
        "ray_dashboard": "Bearer hidden",
    }
    (tmp_path / "ray.token").write_text("hidden\n")
    files = {"credentials": str(tmp_path / "credentials.env"), "ray_token_path": str(tmp_path / "ray.token")}
    variables = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RAY_API_SERVER_ADDRESS")
    for service, variable in zip(sent, variables, strict=True):
        with server() as own, server() as other:
            record(tmp_path / "home", **files, **{service: own})
            Answering.seen.clear()
            services.health()
            monkeypatch.setenv(variable, other)
            services.health()
            monkeypatch.delenv(variable)
        assert Answering.seen == [sent[service], None]


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
