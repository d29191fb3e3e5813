"""The cluster's ports, whether its services answer, and who may read its credentials."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httpx

from smooth import settings
from smooth.doctor.finding import Finding, error, ok, warning
from smooth.listening import CLUSTER_PORTS, LOOPBACK, is_free
from smooth.settings import Services, home, state

TIMEOUT_SECONDS = 30.0  # who is well may be slow where others compute; who is not there is known at once
UP = "make cluster-up"
OTHERS = 0o077
SECRET = ("token", "secret", "credential", "password", "auth", ".env", "options", "profiles")  # in a file's name
LOGS = "look at `make cluster-status` and the logs in .smooth/cluster/logs/"


@dataclass(frozen=True)
class Port:
    """A port of the local cluster, as infra/local has it."""

    service: str
    variable: str
    address: str
    """where the cluster's record tells the port in use"""


PORTS = (
    Port("Ray", "SMOOTH_RAY_PORT", "ray_address"),
    Port("Ray's dashboard", "SMOOTH_RAY_DASHBOARD_PORT", "ray_dashboard"),
    Port("MLflow", "SMOOTH_MLFLOW_PORT", "mlflow_uri"),
    Port("Prefect", "SMOOTH_PREFECT_PORT", "prefect_api"),
)


def ports() -> list[Finding]:
    """Each port of the local cluster: free, in use by it, or taken by somebody else."""
    return [_port(port, state()) for port in PORTS]


def _port(port: Port, record: dict[str, str | None]) -> Finding:
    check = f"port of {port.service}"
    if (address := record.get(port.address)) and (number := _place(address).port):
        if not is_free(number, _place(address).hostname or LOOPBACK):
            return ok(check, f"{number}, in use by this cluster")
        return error(check, f"the cluster was at {number}, where nobody listens now", f"start it again: {UP}")
    text = os.environ.get(port.variable) or str(CLUSTER_PORTS[port.variable])
    if not text.isdecimal() or not 0 < int(text) < 65536:
        return error(check, f"{port.variable}={text!r} is no port number", f"set {port.variable} to 1 to 65535")
    if not is_free(int(text)):
        return error(check, f"{text} is taken by another program", f"stop it, or set {port.variable} to another port")
    return ok(check, f"{text} is free")


def _place(address: str) -> SplitResult:
    return urlsplit(address if "://" in address else f"//{address}")


def addresses() -> dict[str, str]:
    """Service -> its address, of the variables or of the local cluster."""
    services = Services.load()
    found = {
        "Ray": services.ray_dashboard,
        "MLflow": services.mlflow_uri,
        "Prefect": os.environ.get("PREFECT_API_URL") or state().get("prefect_api"),
    }
    return {name: address for name, address in found.items() if address}


def health() -> list[Finding]:
    """Whether Ray, MLflow and Prefect answer a question that only a service in order, and our credential, answers."""
    known = addresses()
    if not known:
        return [ok("services", f"none is up, and none is named by a variable; {UP} starts them")]
    return [_answers(name, known[name]) if name in known else _unnamed(name) for name in ("Ray", "MLflow", "Prefect")]


def _unnamed(name: str) -> Finding:
    variable = {"Ray": "RAY_API_SERVER_ADDRESS", "MLflow": "MLFLOW_TRACKING_URI", "Prefect": "PREFECT_API_URL"}[name]
    return warning(name, "nobody says where it is", f"set {variable}, or {UP}")


def _answers(name: str, address: str) -> Finding:
    if not address.startswith(("http://", "https://")):
        return ok(name, "a database, no server")
    place = httpx.URL(address).copy_with(userinfo=b"", query=None)
    try:
        response = _ask(name, address.rstrip("/"))
    except (httpx.HTTPError, OSError) as failure:
        return error(name, f"{place} does not answer ({failure or type(failure).__name__})", f"{UP}, or {LOGS}")
    if response.status_code in (401, 403):
        mend = {
            "Ray": "set RAY_AUTH_TOKEN_PATH to the file of the cluster's token",
            "MLflow": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            "Prefect": "set PREFECT_API_AUTH_STRING",
        }[name]
        return error(name, f"{place} wants a credential that it didn't get", mend)
    if response.status_code != httpx.codes.OK:
        return error(name, f"{place} answers {response.status_code}", LOGS)
    return ok(name, f"{place} answers")


def _ask(name: str, address: str) -> httpx.Response:
    """One request each that reads a little: of jobs, experiments, flows."""
    headers, auth = {}, None
    if name == "Ray" and (token := Services.load().ray_token_path):
        headers["Authorization"] = f"Bearer {Path(token).read_text().strip()}"
    if name == "MLflow" and (password := _secret("MLFLOW_TRACKING_PASSWORD", "mlflow_uri", address)):
        auth = (os.environ.get("MLFLOW_TRACKING_USERNAME", "admin"), password)
    if name == "Prefect" and (pair := _secret("PREFECT_API_AUTH_STRING", "prefect_api", address)):
        auth = (pair.partition(":")[0], pair.partition(":")[2])
    with httpx.Client(timeout=TIMEOUT_SECONDS, headers=headers, auth=auth) as client:
        if name == "Ray":
            return client.get(f"{address}/api/jobs/")
        if name == "MLflow":
            return client.post(f"{address}/api/2.0/mlflow/experiments/search", json={"max_results": 1})
        return client.post(f"{address}/flows/count", json={})


def _secret(variable: str, service: str, address: str) -> str:
    """Of the variable, else the local cluster's own, for it alone; empty where there is none."""
    if os.environ.get(variable):
        return os.environ[variable]
    if address != state().get(service):
        return ""
    names = {"mlflow_uri": "SMOOTH_MLFLOW_PASSWORD", "prefect_api": "SMOOTH_PREFECT_AUTH"}
    return settings.credentials().get(names[service], "")


def credentials() -> list[Finding]:
    """Files with secrets: only their owner may read them."""
    token = Services.load().ray_token_path
    named = [Path(token)] if token else []
    files = [*named, *_secrets(home() / "cluster"), *_secrets(Path("infra"))]
    found = [finding for path in dict.fromkeys(files) for finding in _credential(path)]
    return found or [ok("credentials", "none here")]


def _secrets(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_file() and _is_secret(path)]


def _is_secret(path: Path) -> bool:
    return path.suffix not in (".py", ".ini", ".yaml") and any(word in path.name for word in SECRET)


def _credential(path: Path) -> list[Finding]:
    if not path.is_file():
        return [error("credentials", f"{path} is not there", "RAY_AUTH_TOKEN_PATH names the file of Ray's token")]
    stat = path.stat()
    if stat.st_mode & OTHERS:
        mend = f"chmod 600 {path}, and make a new one if somebody may have read it"
        return [error("credentials", f"{path} can be read by others (mode {stat.st_mode & 0o777:o})", mend)]
    return [ok("credentials", f"{path} is its owner's alone")]
