"""The local cluster on PostgreSQL and an S3 server, each by one variable: the real ones, where they are installed."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from infra import confined
from infra.local import database, http, processes
from infra.local.access import Access
from infra.local.layout import HOST, PORTS, ClusterError, Layout, free_ports
from infra.local.options import Options
from infra.local.services import MLflowServer, PrefectServer, Service
from smooth.listening import is_free

DRIVERS = ("psycopg2", "boto3")  # of infra/requirements.cluster.lock
PROGRAMS = ("initdb", "postgres", "moto_server")
missing = [name for name in DRIVERS if importlib.util.find_spec(name) is None]
missing += [name for name in PROGRAMS if shutil.which(name) is None]
needs_servers = pytest.mark.skipif(bool(missing), reason=f"not installed here: {', '.join(missing)}")
SECRET = "a-secret/of-the-test"
# Services outlive the command that starts them.
pytestmark = pytest.mark.filterwarnings(r"ignore:subprocess \d+ is still running:ResourceWarning")


@pytest.mark.skipif("psycopg2" not in missing, reason="psycopg2 is there")
def test_a_missing_driver_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(ClusterError, match=r"psycopg2: .*pip install --no-deps -r .*requirements.cluster.lock"):
        database.prepare("postgresql://me@127.0.0.1/smooth", "mlflow")


@contextmanager
def running(command: list[str], port: int, **changed: str) -> Iterator[None]:
    with psutil.Popen(
        command, env=os.environ | changed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        children: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + 60
            while is_free(port):
                assert time.monotonic() < deadline, command
                time.sleep(0.2)
            yield
        finally:
            children = server.children(recursive=True)
            server.terminate()
            for child in children:
                if child.is_running():
                    child.terminate()


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server that wants a password; it refuses to be root's."""
    folder, port = Path("/tmp") / f"smooth-postgres-{os.getpid()}", free_ports(1)[0]
    password = tmp_path_factory.mktemp("postgres") / "password"
    password.write_text(SECRET)
    folder.mkdir(mode=0o700)
    as_user = []
    if os.geteuid() == 0:
        os.chown(folder, *pwd.getpwnam("nobody")[2:4])
        as_user = ["setpriv", "--reuid=nobody", "--clear-groups"]
    try:
        handed = folder / "password"
        handed.write_text(SECRET)
        handed.chmod(0o644)
        made = [*as_user, "initdb", f"--pgdata={folder / 'data'}", "--username=smooth", "--auth=scram-sha-256"]
        subprocess.run([*made, f"--pwfile={handed}"], check=True, capture_output=True)
        command = [*as_user, "postgres", "-D", str(folder / "data"), "-p", str(port), "-h", HOST, "-k", str(folder)]
        with running(command, port):
            quoted = SECRET.replace("/", "%2F")
            yield f"postgresql://smooth:{quoted}@{HOST}:{port}/postgres"
    finally:
        shutil.rmtree(folder)


@needs_servers
def test_both_servers_run_on_postgresql_and_artifacts_on_s3(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = free_ports(1)[0]
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{HOST}:{store}",
    }.items():
        monkeypatch.setenv(name, value)
    with running([shutil.which("moto_server") or "", "-p", str(store)], store):
        client = importlib.import_module("boto3").client("s3")
        client.create_bucket(Bucket="smooth")
        options = Options(database=postgres, store="s3://smooth/mlflow")
        (tmp_path / "cluster").mkdir()
        numbers = dict(zip((port.variable for port in PORTS), free_ports(len(PORTS)), strict=True))
        access = Access.make(Layout(tmp_path), options, numbers)
        with started(MLflowServer(access)) as mlflow, started(PrefectServer(access)) as prefect:
            made = http.request(f"{prefect}/api/flows/", body={"name": "kept"})
            assert made is not None
            assert made[0] in (200, 201), made
            api = f"{mlflow}/api/2.0/mlflow"
            refused = http.request(f"{api}/experiments/create", body={"name": "x", "artifact_location": "file:///etc"})
            assert refused is not None
            assert refused[0] == 400, refused
            log = "import mlflow; run = mlflow.start_run(); mlflow.log_text('kept', 'kept.txt'); print(run.info.run_id)"
            log = log.replace("run =", "mlflow.set_experiment('kept'); run =")
            result = subprocess.run(
                [sys.executable, "-c", log], env=os.environ | access.environment(), capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr
            (kept,) = client.list_objects_v2(Bucket="smooth")["Contents"]
            assert kept["Key"].startswith("mlflow/")
            assert kept["Key"].endswith("/artifacts/kept.txt")
        with started(MLflowServer(access)) as mlflow, started(PrefectServer(access)) as prefect:  # it is all there
            assert http.request(f"{prefect}/api/flows/name/kept") is not None
            run_id = result.stdout.splitlines()[0]
            found = subprocess.run(
                [sys.executable, "-c", f"import mlflow; print(mlflow.artifacts.load_text('runs:/{run_id}/kept.txt'))"],
                env=os.environ | access.environment(), capture_output=True, text=True,
            )  # fmt: skip
            assert found.stdout.strip() == "kept", found.stderr
    assert not list(tmp_path.rglob("*.db"))
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert SECRET not in path.read_text(errors="replace"), path


@pytest.mark.parametrize("url", ["postgresql://me:hidden", "postgresql:/me:hidden@host", "mysql://me:hidden@host"])
def test_a_database_that_can_not_be_read_is_not_shown(url: str) -> None:
    with pytest.raises(ClusterError, match=confined.BACKEND) as refused:
        confined.confine(url)
    assert "hidden" not in str(refused.value)


@needs_servers
def test_a_container_confines_mlflow_before_it_starts(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = postgres.rpartition("@")[2]
    command = [sys.executable, "-m", "infra.confined", sys.executable, "-c", "print('the server')"]
    monkeypatch.setenv(confined.BACKEND, postgres.replace("://", "+psycopg2://"))  # no tables yet
    with psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as starting:
        lines = set[str]()
        while starting.poll() is None:
            for child in starting.children():
                with suppress(psutil.NoSuchProcess):
                    lines.add(" ".join(child.cmdline()))
            time.sleep(0.02)
        output = starting.stdout.read()
    assert (starting.returncode, output.splitlines()[-1:]) == (0, ["the server"]), output
    assert any(f"db upgrade postgresql+psycopg2://smooth@{place}" in line for line in lines), lines
    secrets = (SECRET, postgres.split(":")[2].partition("@")[0])
    assert not [text for text in (output, *lines) for secret in secrets if secret in text]
    monkeypatch.setenv("PGPASSWORD", SECRET)
    monkeypatch.setenv(confined.BACKEND, f"postgresql+psycopg2://smooth@{place}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["the server"]), done.stderr
    assert SECRET not in done.stdout + done.stderr
    driver = importlib.import_module("psycopg2")
    with closing(driver.connect(f"postgresql://smooth@{place}")) as connection, connection.cursor() as cursor:
        insert = "INSERT INTO experiments (experiment_id, name, artifact_location) VALUES (%s, %s, %s)"
        cursor.execute(insert, (7, "its own place", "mlflow-artifacts:/7"))
        connection.commit()
        with pytest.raises(driver.errors.CheckViolation, match="smooth_place"):
            cursor.execute(insert, (8, "another", "file:///etc"))
    monkeypatch.setenv("PGPASSWORD", "wrong")
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "MLflow's database can't be confined: MLFLOW_BACKEND_STORE_URI:" in refused.stderr


@contextmanager
def started(service: Service) -> Iterator[str]:
    """The service, from its first healthy answer on; its command shows no secret to anybody."""
    service.prepare()
    record = processes.start(
        service.command(),
        environment=service.environment(),
        folder=service.layout.home,
        log=service.layout.log(service.name),
        record=service.layout.record(service.name),
        ports={},
    )
    marker = service.layout.marker(service.name)
    try:
        deadline = time.monotonic() + 180
        while not service.is_healthy(record):
            assert time.monotonic() < deadline, service.layout.log(service.name).read_text()[-3000:]
            assert record.process(), service.layout.log(service.name).read_text()[-3000:]
            time.sleep(0.5)
        service.finish()
        shown = " ".join(word for process in processes.members(record, marker) for word in process.cmdline())
        assert SECRET not in shown
        assert "%2F" not in shown
        yield service.url() or ""
    finally:
        processes.stop(record, marker)
