"""The local cluster's parts that need no service: its options, its logs, its records, its database's names."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from infra import credentials
from infra.local import database, logs, processes
from infra.local.access import Access
from infra.local.cluster import LocalCluster
from infra.local.layout import GUARDED, HOST, MLFLOW_PORT, PORTS, ClusterError, Layout, free_ports
from infra.local.options import VARIABLES, Options, addresses_of_this_machine
from infra.local.processes import Identity, Record
from infra.local.services import SERVICES, Guard, MLflowServer, PrefectServer
from smooth.listening import is_free
from smooth.settings import Services

SECRET = "hidden-and-100%-secret"
URL = "postgresql://me:hidden-and-100%25-secret@db.example:6432/smooth"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES.values(), "SMOOTH_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME"):
        monkeypatch.delenv(name, raising=False)


def access(tmp_path: Path, options: Options) -> Access:
    (tmp_path / "cluster").mkdir()
    behind = {port.behind: port.default + 20_000 for port in GUARDED}
    return Access.make(Layout(tmp_path), options, {port.variable: port.default for port in PORTS} | behind)


def test_without_variables_all_is_on_loopback_sqlite_and_a_folder() -> None:
    assert Options.asked(Options(), running=False) == Options()
    assert not Options().is_open
    assert Options().host == HOST


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SMOOTH_BIND", "203.0.113.7", "is no IPv4 address of this machine: give one of 0.0.0.0, "),
        ("SMOOTH_BIND", "everywhere", "is no IPv4 address"),
        ("SMOOTH_BIND", "::", "is no IPv4 address"),
        ("SMOOTH_WORKERS", "-1", "is not a number of Ray nodes"),
        ("SMOOTH_WORKERS", "1000", "is not a number of Ray nodes"),
        ("SMOOTH_STORE", "/folder", "is not of the form s3://bucket"),
        ("SMOOTH_STORE", f"s3://key:{SECRET}@bucket", "keys go into AWS_ACCESS_KEY_ID"),
        ("SMOOTH_DATABASE", f"mysql://me:{SECRET}@host/name", "is not of the form postgresql://"),
        ("SMOOTH_DATABASE", f"postgresql://me:{SECRET}@host", "is not of the form postgresql://"),
        ("SMOOTH_DATABASE", f"postgresql://me:{SECRET}@host:port/name", "its port is not a number"),
        ("SMOOTH_DATABASE", f'postgresql://me:{SECRET}@host/na"me', "letters, digits and underscores"),
        ("SMOOTH_DATABASE", f"postgresql://me:{SECRET}@host/name?sslmode=require", "PGSSLMODE=require"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named_and_no_secret_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ClusterError, match=variable) as failure:
        Options.asked(Options(), running=False)
    assert message in str(failure.value)
    assert SECRET not in str(failure.value)


def test_what_runs_keeps_its_options_until_it_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTH_BIND", "0.0.0.0")
    monkeypatch.setenv("SMOOTH_DATABASE", URL)
    monkeypatch.setenv("SMOOTH_WORKERS", "2")
    path = tmp_path / "options.json"
    Options.asked(Options(), running=False).save(path)
    assert path.stat().st_mode & 0o077 == 0
    known = Options.read(path)
    assert (known.bind, known.database, known.workers, known.host) == ("0.0.0.0", URL, 2, HOST)
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    assert Options.asked(known, running=True) == known
    monkeypatch.setenv("SMOOTH_WORKERS", "0")
    assert Options.asked(known, running=True) == known.model_copy(update={"workers": 0})
    monkeypatch.setenv("SMOOTH_DATABASE", URL.replace("smooth", "other"))
    with pytest.raises(ClusterError, match=r"SMOOTH_DATABASE .*`make cluster-down` first") as failure:
        Options.asked(known, running=True)
    assert "hidden" not in str(failure.value)
    assert Options.asked(known, running=False).database == URL.replace("smooth", "other")
    monkeypatch.delenv("SMOOTH_DATABASE")
    monkeypatch.delenv("SMOOTH_WORKERS")
    assert Options.asked(known, running=False) == known  # after a reboot it comes up as it was
    path.write_text('{"bind": ')
    assert Options.read(path) == Options()


def test_the_addresses_of_this_machine_hold_loopback() -> None:
    assert HOST in addresses_of_this_machine()


def test_ports_told_ahead_are_the_same_for_nobody_who_sets_the_same_seed() -> None:
    drawn = []
    for _ in range(2):
        random.seed(0)
        drawn.append(free_ports(20))
    assert drawn[0] != drawn[1]
    assert {len(set(ports)) for ports in drawn} == {20}
    assert all(20_000 <= port < 32_768 and is_free(port) for port in drawn[0])


def test_no_service_has_a_secret_in_its_command_and_ray_none_of_prefect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMOOTH_DATABASE", URL)
    made = access(tmp_path, Options(bind="0.0.0.0", database=URL))
    secrets = [value for value in made.secrets.values() if len(value) > 1] + [SECRET, "hidden-and-100%25-secret"]
    secrets.append(base64.b64encode(made.prefect_login.encode()).decode())
    for service in (*SERVICES, Guard):
        found = service(made)
        assert not [secret for secret in secrets if secret in " ".join(found.command())]
        assert "SMOOTH_DATABASE" not in found.environment()
        of_prefect = {"PREFECT_API_AUTH_STRING", "PREFECT_CLIENT_CUSTOM_HEADERS"} & set(found.environment())
        assert len(of_prefect) == (0 if found.name in ("ray", "guard") else 2)
    given = " ".join(Guard(made).environment().values())
    assert not [secret for secret in secrets if secret in given]
    for kind in (MLflowServer, PrefectServer):
        environment = kind(made).environment()
        assert environment.pop("PGPASSWORD") == SECRET
        assert not [name for name, value in environment.items() if "hidden" in value]
    assert "hidden" not in repr(made)


def test_an_open_cluster_listens_by_its_guard_alone(tmp_path: Path) -> None:
    made = access(tmp_path, Options(bind="0.0.0.0"))
    guard, services = Guard(made), [kind(made) for kind in SERVICES]
    assert (guard.address, [guard.number(port) for port in guard.ports]) == ("0.0.0.0", [8265, 5000, 4200])
    assert {service.address for service in services} == {HOST}
    assert [service.number(port) for service in services for port in service.ports] == [6379, 28265, 25000, 24200]
    assert not [service for service in services if "0.0.0.0" in " ".join(service.command()).replace("=", " ").split()]
    assert [service.url() for service in services] == [*(f"http://{HOST}:{port}" for port in (8265, 5000, 4200)), None]
    assert guard.recorded_ports() == {
        name: made.ports[name] for port in GUARDED for name in (port.variable, port.behind)
    }
    profile = tomllib.loads(made.layout.prefect_profiles.read_text())["profiles"]["cluster"]
    assert json.loads(profile["PREFECT_CLIENT_CUSTOM_HEADERS"]) == made.prefect_headers()
    closed = Access.make(made.layout, Options(), made.ports)
    assert [kind(closed).number(port) for kind in SERVICES for port in kind.ports] == [6379, 8265, 5000, 4200]
    assert MLflowServer(closed).recorded_ports() == {"SMOOTH_MLFLOW_PORT": 5000}


@pytest.mark.parametrize("living", ["guard", "mlflow"])
def test_the_guard_and_a_service_find_each_other_again(tmp_path: Path, living: str) -> None:
    """By what the other's record says, when one of them has died and no variable tells."""
    layout, own = Layout(tmp_path), Identity.of(os.getpid())
    ports = {MLFLOW_PORT.variable: 5555, MLFLOW_PORT.behind: 25_555}
    record = Record(main=own, keeper=own, created=0.0, ports=ports)
    layout.record(living).parent.mkdir(parents=True)
    layout.record(living).write_text(record.model_dump_json())
    found = LocalCluster(layout).ports
    assert {name: found[name] for name in ports} == ports
    assert len(set(found.values())) == len(PORTS) + len(GUARDED)


def test_mlflow_is_called_by_its_own_addresses_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTH_MLFLOW_HOSTS", "mlflow.example:5000")
    environment = MLflowServer(access(tmp_path, Options(bind="0.0.0.0"))).environment()
    hosts = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {f"{address}:5000" for address in addresses_of_this_machine()} < set(hosts)
    assert {"localhost:5000", "mlflow.example:5000", f"{HOST}:25000"} < set(hosts)
    assert not [host for host in hosts if "*" in host]
    origins = environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert origins == [f"http://{host}" for host in hosts]


def test_the_client_logs_in_to_the_local_cluster_and_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = access(tmp_path, Options(bind="0.0.0.0"))
    made.layout.state.write_text(json.dumps(made.state()))
    assert not [value for value in made.secrets.values() if len(value) > 1 and value in made.layout.state.read_text()]
    monkeypatch.setenv("SMOOTH_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere.example:5000")
    Services.load().log_in()
    assert not os.environ["MLFLOW_TRACKING_PASSWORD"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    Services.load().log_in()
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "admin"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == made.secrets["SMOOTH_MLFLOW_PASSWORD"]
    for address in ("", made.state()["ray_dashboard"]):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", str(address))
        assert Services.load().ray_token_path == str(made.layout.token)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere.example:8265")
    assert Services.load().ray_token_path is None
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/its/own")
    assert Services.load().ray_token_path == "/its/own"


def test_credentials_that_others_can_read_are_refused(tmp_path: Path) -> None:
    made = access(tmp_path, Options())
    assert not made.layout.prefect_profiles.exists()
    made.layout.credentials.chmod(0o644)
    with pytest.raises(ClusterError, match="can be read by others: chmod 600"):
        Access.make(made.layout, made.options, made.ports)
    assert credentials.read(made.layout.credentials) == made.secrets


def test_each_service_has_its_database_and_no_url_a_password() -> None:
    assert (
        database.url(URL, "mlflow", "postgresql+psycopg2") == "postgresql+psycopg2://me@db.example:6432/smooth_mlflow"
    )
    assert urlsplit(database.url("postgresql://a%40b@[::1]/x", "prefect", "d")).port == 5432
    assert database.url("postgresql://a%40b@[::1]/x", "prefect", "d") == "d://a%40b@[::1]:5432/x_prefect"
    assert database.environment(URL) == {"PGPASSWORD": SECRET}
    assert database.environment("postgresql://me@host/name") == {}


def test_the_database_refuses_a_place_of_an_experiments_own(tmp_path: Path) -> None:
    """As MLflow fills its table: the place comes with the row, or after it."""
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, artifact_location TEXT)")
        connection.execute("INSERT INTO experiments VALUES (1, '/of/before')")
        connection.commit()
    for _ in range(2):
        database.confine_sqlite(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO experiments (artifact_location) VALUES ('')")
        connection.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/2' WHERE experiment_id = 2")
        for place in ("file:///etc", "mlflow-artifacts:/1", "mlflow-artifacts:/2/../1"):
            with pytest.raises(sqlite3.IntegrityError, match="leave artifact_location out"):
                connection.execute("INSERT INTO experiments (artifact_location) VALUES (?)", [place])
            with pytest.raises(sqlite3.IntegrityError, match="leave artifact_location out"):
                connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = 2", [place])


def test_logs_are_bounded_whatever_is_printed(tmp_path: Path) -> None:
    log = tmp_path / "noisy.log"
    code = "import sys\nfrom infra.local import logs\nlogs.keep(sys.argv[1], max_bytes=50_000)"
    with subprocess.Popen([sys.executable, "-c", code, str(log)], stdin=subprocess.PIPE) as keeper:
        assert keeper.stdin is not None
        for number in range(20_000):
            keeper.stdin.write(f"line {number:06} \xff\n".encode("latin-1"))  # no UTF-8 at all
        keeper.stdin.write(b"x" * 200_000)  # no line at all
        keeper.stdin.write(b"\nthe last\n")
    assert keeper.returncode == 0
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["noisy.log", *(f"noisy.log.{number + 1}" for number in range(3))]
    assert log.read_text().endswith("the last\n")
    assert all(path.stat().st_size <= 50_000 + logs.LINE_BYTES for path in files)


# Services outlive the command that starts them.
@pytest.mark.filterwarnings(r"ignore:subprocess \d+ is still running:ResourceWarning")
def test_a_service_writes_into_its_log_to_its_last_word(tmp_path: Path) -> None:
    """The keeper is asked to stop together with its service, and stays until that has ended."""
    code = (
        "import signal, sys, time\n"
        "def end(*_): time.sleep(0.5); print('last word', flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(60)"
    )
    log, record = tmp_path / "logs" / "x.log", tmp_path / "records" / "x.json"
    marker = f"{tmp_path}#x"
    made = processes.start(
        [sys.executable, "-c", code],
        environment=os.environ | {processes.MARKER: marker},
        folder=tmp_path,
        log=log,
        record=record,
        ports={},
    )
    assert processes.read_record(record) == made
    deadline = time.monotonic() + 60
    while not log.is_file() or log.read_text() != "ready\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert processes.marked(f"{tmp_path}#") == {marker}
    os.kill(made.keeper.pid, signal.SIGTERM)
    assert processes.stop(made, marker) == 2
    assert log.read_text() == "ready\nlast word\n"
    assert processes.members(made, marker) == []


def test_a_later_process_with_the_pid_of_a_record_is_not_ours(tmp_path: Path) -> None:
    own = Identity.of(os.getpid())
    assert own.process() == psutil.Process()
    boot, _, tick = own.start.partition(":")
    assert Identity(pid=own.pid, start=f"{boot}:{int(tick) - 1}").process() is None
    assert Identity(pid=own.pid, start=f"another:{tick}").process() is None
    with pytest.raises(psutil.NoSuchProcess):
        Identity.of(2**22 + 1)
    half = tmp_path / "ray.json"
    half.write_text(Record(main=own, keeper=own, created=0.0).model_dump_json()[:-2])
    assert processes.read_record(half) is None
