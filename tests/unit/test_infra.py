"""The image and compose.yaml: schemas hold, what they name exists, nothing is open, nothing is root's or secret."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import stat
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

import smooth
from infra import credentials, render
from infra.local.layout import DASHBOARD_PORT, MLFLOW_PORT, POOL, PREFECT_PORT, PROJECT, RAY_PORT, program
from smooth.serve.cli import serve
from smooth.serve.settings import LEAST_TOKEN, TOKEN_VARIABLE
from tests.deployments import (
    COMPOSE,
    INFRA,
    NOTIFY,
    SECRETS,
    MissingVariableError,
    compose,
    dockerfile,
    environment_of,
    pods,
)

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("smooth:")}
# Service that publishes a port -> what makes it ask for a credential.
GUARDS = {
    "mlflow": ("MLFLOW_AUTH_ADMIN_PASSWORD_FILE", "/run/secrets/mlflow_password"),
    "prefect": ("PREFECT_SERVER_API_AUTH_STRING_FILE", "/run/secrets/prefect_auth"),
    "ray-head": ("RAY_AUTH_MODE", "token"),
    "serve": (f"{TOKEN_VARIABLE}_FILE", "/run/secrets/serve_token"),
}
SENSITIVE = re.compile(r"PASSWORD|TOKEN|SECRET|AUTH_STRING|ACCESS_KEY$|NOTIFY_URL")
FROM_FILES = re.compile(r"(PASSWORD|AUTH_STRING|SECRET_KEY|ACCESS_KEY|SERVE_TOKEN|NOTIFY_URL)_FILE$")
# Variables of programs that are no Python of the lock: libpq, botocore, Ray's C++.
OTHERS = {"PGPASSWORD", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
OTHERS |= {"RAY_AUTH_MODE"}
POSTGRES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "PGDATA"}


def locked() -> dict[str, str]:
    lines = [line for line in (INFRA / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_compose_holds_its_schema_as_written_and_filled_in() -> None:
    schema = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    written = [yaml.safe_load(path.read_text()) for path in (COMPOSE, NOTIFY)]
    for document in (*written, compose(), compose(NOTIFY), compose(SMOOTH_MLFLOW_HOSTS="a.example")):
        assert [error.message for error in validator.iter_errors(document)] == []
    broken = compose()
    broken["services"]["mlflow"]["comand"] = "server"
    assert list(validator.iter_errors(broken))


def test_the_dockerfile_passes_hadolint() -> None:
    command = [program("hadolint"), str(INFRA / "Dockerfile")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_compose_demands_credentials_and_says_how_to_make_them() -> None:
    with pytest.raises(MissingVariableError, match=r"infra\.credentials infra/cluster\.env"):
        compose(SMOOTH_CREDENTIALS="")


def test_no_port_is_published_without_a_credential_and_all_are_on_loopback_by_default() -> None:
    publishing = {name: service for name, service in SERVICES.items() if service.get("ports")}
    assert publishing.keys() == GUARDS.keys()
    for name, service in publishing.items():
        variable, value = GUARDS[name]
        assert service["environment"][variable] == value
        (port,) = service["ports"]
        assert port.startswith("127.0.0.1:")
        opened = compose(SMOOTH_BIND="0.0.0.0")["services"][name]["ports"]
        assert opened == [port.replace("127.0.0.1", "0.0.0.0")]
    assert "--app-name=basic-auth" in SERVICES["mlflow"]["command"]
    for service in SERVICES.values():  # nobody talks to Ray without its token
        if service.get("command", [])[:1] == ["ray"]:
            assert service["environment"]["RAY_AUTH_MODE"] == "token"


def test_ports_are_those_of_the_local_cluster() -> None:
    published = {name: int(SERVICES[name]["ports"][0].split(":")[-1]) for name in GUARDS}
    local = {"mlflow": MLFLOW_PORT, "prefect": PREFECT_PORT, "ray-head": DASHBOARD_PORT}
    serving = inspect.signature(serve).parameters["port"].default
    expected = {name: port.default for name, port in local.items()} | {"serve": serving}
    assert published == expected
    for name, port in expected.items():
        assert any(str(port) in word for word in SERVICES[name]["command"])
    assert f"--port={RAY_PORT.default}" in SERVICES["ray-head"]["command"]
    assert f"--address=ray-head:{RAY_PORT.default}" in SERVICES["ray-worker"]["command"]


def reaching_the_web(document: dict[str, Any]) -> set[str]:
    option = "com.docker.network.bridge.enable_ip_masquerade"
    ways = {
        name
        for name, network in document["networks"].items()
        if not network.get("internal") and network.get("driver_opts", {}).get(option) != "false"
    }
    return {name for name, service in document["services"].items() if ways & set(service["networks"])}


def test_only_ingest_reaches_the_web() -> None:
    assert reaching_the_web(compose()) == {"ray-ingest"}
    resources = next(word for word in SERVICES["ray-ingest"]["command"] if word.startswith("--resources="))
    assert "ingest" in json.loads(resources.partition("=")[2])


def test_every_address_is_a_service_on_a_common_network_that_listens_there() -> None:
    ports = {"postgres": 5432, "store": 9000, "mlflow": 5000, "prefect": 4200, "ray-head": 8265}
    seen = set()
    for name, service in SERVICES.items():
        for value in service.get("environment", {}).values():
            for host, port in re.findall(r"(?:http|postgresql\S*)://(?:\w+@)?([a-z-]+):(\d+)", value):
                assert ports[host] == int(port)
                assert set(service["networks"]) & set(SERVICES[host]["networks"])
                seen.add((name, host))
        for needed in service.get("depends_on", {}):
            assert needed in SERVICES
    assert {("mlflow", "postgres"), ("mlflow", "store"), ("worker", "prefect"), ("worker", "ray-head")} <= seen
    assert {other for name, other in seen if name == "serve"} == {"mlflow"}
    allowed = SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert urlsplit(SERVICES["worker"]["environment"]["MLFLOW_TRACKING_URI"]).netloc in allowed


def test_nothing_runs_as_root() -> None:
    for name, service in SERVICES.items():
        assert int(service["user"].split(":")[0]) > 0, name
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged")
    last = {step.stage: step.value for step in dockerfile() if step.name == "USER"}
    assert last == dict.fromkeys(("cpu", "cuda", "store"), "10001:10001")
    assert {service["user"] for service in OURS.values()} == {"10001:10001"}


def test_images_are_pinned_and_versions_agree() -> None:
    tags = {service["image"] for service in SERVICES.values()}
    assert tags == {
        f"smooth:{smooth.__version__}-cpu",
        f"smooth:{smooth.__version__}-cuda",
        f"smooth-store:{smooth.__version__}",
        "postgres:17.6-bookworm",
    }
    bases = dict(step.value.split("=", 1) for step in dockerfile() if step.stage == "" and step.name == "ARG")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases["BASE"])
    assert re.fullmatch(r"minio/minio:RELEASE\.[\dTZ-]+", bases["STORE"])
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11.3"
    targets = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert targets == {"cpu", "cuda", "store"}


def test_the_image_is_made_of_the_locks_alone() -> None:
    runs = [step.value for step in dockerfile() if step.name == "RUN"]
    installs = re.findall(r"pip install [^;&\n]+", "\n".join(runs))
    assert len(installs) == 5
    assert all(" --no-deps " in command for command in installs)
    for step in dockerfile():
        if step.name == "COPY" and "--from" not in step.value:
            assert all((PROJECT / source).exists() for source in step.value.split()[:-1])
    extra = [line for line in (INFRA / "requirements.cluster.lock").read_text().splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in extra)
    assert dict(line.split("==") for line in extra)["s3fs"] == locked()["fsspec"]


def test_the_context_holds_no_secret_and_no_environment() -> None:
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"  # all but what is named
    assert "infra/cluster.env" in ignored[-4:]
    assert "infra/cluster.env" in (PROJECT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", OURS)
def test_the_first_word_of_every_command_exists(name: str) -> None:
    first, second, third, *_ = [*SERVICES[name]["command"], "", ""]
    if first == "python":
        assert second == "-m"
        assert importlib.util.find_spec(third) is not None
        if third == "infra.confined":
            assert Path(program(SERVICES[name]["command"][3])).is_file()
    else:
        assert (PROJECT / first).is_file() or Path(program(first)).is_file()
    build = SERVICES[name]["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).samefile(INFRA / "Dockerfile")


def test_every_variable_is_read_by_what_it_is_set_for() -> None:
    from prefect.settings.legacy import _get_valid_setting_names
    from prefect.settings.models.root import Settings

    readers = ["mlflow/environment_variables.py", "mlflow/utils/cli_args.py", "mlflow/cli/__init__.py"]
    (mlflow,) = importlib.util.find_spec("mlflow").submodule_search_locations  # type: ignore[union-attr, misc]
    texts = [(Path(mlflow).parent / path).read_text() for path in readers]
    ours = ("smooth/settings.py", "smooth/serve/settings.py", "flows/automations.py", "infra/healthcheck.py")
    texts += [(PROJECT / path).read_text() for path in ours]
    read = _get_valid_setting_names(Settings) | OTHERS | set(re.findall(r"\b[A-Z][A-Z_0-9]+\b", "".join(texts)))
    services = compose(NOTIFY)["services"]
    named = {name for service in OURS for name in services[service].get("environment", {})}
    named |= {name for pod in pods() for container in pod.containers for name in environment_of(container)}
    assert {re.sub(r"_FILE$", "", name) for name in named} - read - POSTGRES == set()


def test_secrets_come_from_files_that_compose_fills_from_the_credentials() -> None:
    document = compose(NOTIFY)
    sources = {name: secret["environment"] for name, secret in document["secrets"].items()}
    assert set(sources.values()) == credentials.CREDENTIALS.keys() - {"SMOOTH_CREDENTIALS"} | {"SMOOTH_NOTIFY_URL"}
    assert "SMOOTH_NOTIFY_URL" not in str(compose())  # which starts without one
    for name, service in document["services"].items():
        mounted = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
        used = set()
        for variable, value in service.get("environment", {}).items():
            if SENSITIVE.search(variable) and variable not in ("AWS_ACCESS_KEY_ID", "RAY_AUTH_MODE"):
                assert value in mounted, f"{name}: {variable}"
            used |= {value} & mounted
            if variable.endswith("_FILE") and name in OURS:
                assert FROM_FILES.search(variable)
        assert used == mounted
    written = [path for path in INFRA.rglob("*") if path.is_file() and path.suffix not in (".lock", ".pyc")]
    for path in written:
        assert not re.search(r"\b[0-9a-f]{32,}\b", path.read_text()), path
    assert not any(value in COMPOSE.read_text() for value in SECRETS.values() if len(value) > 8)


def test_artifacts_lie_where_a_relative_root_means_them() -> None:
    workdir = {step.stage: step.value for step in dockerfile() if step.name == "WORKDIR"}["cpu"]
    from smooth.sections import StorageConfig

    home = (Path(workdir) / StorageConfig().root).parent
    for name in ("ray-head", "ray-worker", "ray-ingest", "ray-gpu", "worker", "serve"):
        assert f"artifacts:{home}" in SERVICES[name]["volumes"]
    pool = {item["work_pool"]["name"] for item in yaml.safe_load((INFRA / "prefect.yaml").read_text())["deployments"]}
    assert pool == {POOL}
    assert f"--pool={POOL}" in SERVICES["worker"]["command"]
    assert POOL in (INFRA / "deploy.sh").read_text()
    bound = [volume.split(":")[0] for volume in SERVICES["postgres"]["volumes"] if volume.startswith(".")]
    assert bound
    assert all((INFRA / path).is_file() for path in bound)


def test_a_place_under_a_limit_outlives_prefects_container() -> None:
    prefect = compose()["services"]["prefect"]
    (volume,) = prefect["volumes"]
    source, folder = volume.split(":")
    assert source in compose()["volumes"]
    assert source not in {name.split(":")[0] for other in SERVICES if other != "prefect"
                          for name in SERVICES[other].get("volumes", [])}  # fmt: skip
    assert Path(prefect["environment"]["PREFECT_HOME"]).is_relative_to(folder)
    storage = prefect["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
    assert hasattr(importlib.import_module(storage), "ConcurrencyLeaseStorage")
    # A volume takes its owner from the image's folder.
    assert any(f"--owner=smooth --group=smooth {folder}" in step.value for step in dockerfile() if step.name == "RUN")


def test_who_is_told_of_failures_is_asked_for_and_only_then_does_prefect_reach_the_web() -> None:
    document = compose(NOTIFY)
    assert reaching_the_web(document) == {"ray-ingest", "prefect"}
    told = document["services"]["deployments"]
    assert told["environment"]["SMOOTH_NOTIFY_URL_FILE"] == "/run/secrets/notify_url"
    assert told["environment"].items() >= SERVICES["deployments"]["environment"].items()
    assert "python -m flows.automations" in (INFRA / "deploy.sh").read_text()
    assert set(document["services"]["prefect"]["networks"]) > set(SERVICES["prefect"]["networks"])
    assert document["services"].keys() == SERVICES.keys()


def test_a_token_of_the_credentials_is_one_that_serve_takes() -> None:
    assert len(SECRETS[TOKEN_VARIABLE]) >= LEAST_TOKEN
    assert SERVICES["serve"]["profiles"] == ["serve"]  # nothing is in production at first


@pytest.mark.parametrize("script", sorted(INFRA.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_executable_bash(script: Path) -> None:
    assert script.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_credentials_are_made_once_for_this_user_and_never_printed(tmp_path: Path) -> None:
    path = tmp_path / "cluster.env"
    command = [sys.executable, "-S", "-m", "infra.credentials", str(path)]  # -S: a new machine has Python alone
    made = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    first = credentials.read(path)
    assert first.keys() == credentials.CREDENTIALS.keys()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [value for value in first.values() if len(value) > 8 and value in made.stdout + made.stderr]
    assert credentials.write_missing(path) == []
    path.write_text(path.read_text().replace(f"SMOOTH_RAY_TOKEN={first['SMOOTH_RAY_TOKEN']}\n", ""))
    assert credentials.write_missing(path) == ["SMOOTH_RAY_TOKEN"]
    again = credentials.read(path)
    assert {name for name in first if first[name] != again[name]} == {"SMOOTH_RAY_TOKEN"}
    path.chmod(0o644)
    with pytest.raises(ValueError, match="can be read by others"):
        credentials.write_missing(path)


def test_the_entrypoint_reads_secrets_and_hides_their_files(tmp_path: Path) -> None:
    secret, empty = tmp_path / "secret", tmp_path / "empty"
    secret.write_text("of-nobody\n")
    empty.touch()

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(INFRA / "entrypoint.sh"), "bash", "-c", 'echo "$PGPASSWORD|$SSL_CERT_FILE|${PGPASSWORD_FILE-}"']
        return subprocess.run(command, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True)

    found = run(PGPASSWORD_FILE=str(secret), SSL_CERT_FILE="/etc/ssl/some.pem", AWS_WEB_IDENTITY_TOKEN_FILE="/none")
    assert found.stdout == "of-nobody|/etc/ssl/some.pem|\n"
    for path, words in ((empty, "which is empty"), (tmp_path / "none", "which can't be read")):
        refused = run(PGPASSWORD_FILE=str(path))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"error: PGPASSWORD_FILE names {path}, {words}" in refused.stderr


def test_a_name_without_a_value_is_refused_and_the_shells_names_stay() -> None:
    assert render.render("a ${X} $Y $${X}", {"X": "1"}) == "a 1 $Y $1"
    with pytest.raises(ValueError, match="not set: X, Z"):
        render.render("${Z} ${X}", {"X": ""})
