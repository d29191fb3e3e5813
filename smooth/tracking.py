"""One MLflow run per trained model: parameters, metrics, pictures and lineage of everything it was made from.

A run is found again by the fingerprint of its training, so a retried stage continues its run instead of
opening a second one, and evaluation and registration write to the run of the model that they judge.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context import registry as context_registry
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from PIL import Image

from smooth import store
from smooth.config import STAGES, RunConfig, Stage
from smooth.settings import Services, home

FINGERPRINT_TAG = "smooth.fingerprint."
MAX_PARAM_LENGTH = 500
FLUSH_SECONDS = 5.0
FLUSH_METRICS = 500  # the server takes at most 1000 in one request
PARAMS_PER_REQUEST = 100
DIGEST_LENGTH = 32  # MLflow takes at most 36 characters of a data set's

_TEXT_SUFFIXES = frozenset({".json", ".yaml", ".yml", ".txt", ".md", ".csv", ".html"})
# user:password@ (a secret may hold slashes, S3's do), or a lone token@, between :// and the host.
_USER_INFO = re.compile(r"://(?:[^\s/@:]*:[^\s@]*|[^\s/@:]+)@")
_SECRET_QUERY = re.compile(r"(?i)([?&][\w.-]*(?:token|key|secret|sig|signature|password|credential)[\w.-]*=)[^&\s\"']+")


def redact(text: str) -> str:
    """Replace credentials inside URLs (``s3://key:secret@bucket``, ``?token=...``) by ``***``."""
    return _SECRET_QUERY.sub(r"\1***", _USER_INFO.sub("://***@", text))


def tracking_uri() -> str:
    """Where runs are kept: ``MLFLOW_TRACKING_URI``, else the local cluster's server, else SQLite under ``.smooth/``.

    Workers may run in another directory: hand them this value as ``MLFLOW_TRACKING_URI``.
    """
    services = Services.load()
    if uri := services.mlflow_uri:
        services.log_in()
        return uri
    database = home() / "mlflow.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{database}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested config values as ``{"train.lora.rank": "8"}``, secrets redacted, each at most 500 characters."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = redact(str(value))[:MAX_PARAM_LENGTH]
    return flat


def fingerprint_tags(config: RunConfig, stages: tuple[Stage, ...] = STAGES) -> dict[str, str]:
    """The lineage tags of a run: one fingerprint a stage."""
    return {f"{FINGERPRINT_TAG}{stage}": config.fingerprint(stage) for stage in stages}


class Run:
    """An MLflow run that is being written to. Metrics are buffered: call :meth:`flush` to see them at once."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id
        self._buffer: list[Metric] = []
        self._flushed = time.monotonic()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record values of one step; they reach the server within seconds, many steps in one request."""
        now = round(time.time() * 1000)
        self._buffer += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        if len(self._buffer) >= FLUSH_METRICS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send all buffered metrics.

        Raises:
            MlflowException: the tracking server can't be reached (after MLflow's own retries).
        """
        while self._buffer:
            self._client.log_batch(self.run_id, metrics=self._buffer[:FLUSH_METRICS])
            del self._buffer[:FLUSH_METRICS]
        self._flushed = time.monotonic()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, secrets redacted."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, redact(value)) for key, value in tags.items()])

    def adopt(self, runs: Iterable[str]) -> None:
        """Show other runs below this one; a run has one parent, the last that took it."""
        for run_id in runs:
            self._client.set_tag(run_id, MLFLOW_PARENT_RUN_ID, self.run_id)

    def log_artifact(self, path: str, folder: str = "") -> None:
        """Copy a file of any fsspec path into the run's ``folder``; text files are redacted on the way."""
        name = PurePosixPath(path).name
        data = store.read_bytes(path)
        if PurePosixPath(name).suffix in _TEXT_SUFFIXES:
            data = redact(data.decode()).encode()
        with tempfile.TemporaryDirectory(prefix="smooth-artifact-") as temporary:
            local = Path(temporary, name)
            local.write_bytes(data)
            self._client.log_artifact(self.run_id, str(local), folder or None)

    def log_picture(self, path: str, folder: str = "pictures", step: int | None = None) -> None:
        """Copy a PNG into the run's ``folder``; with a ``step`` it also joins the step slider of MLflow's charts."""
        self.log_artifact(path, folder)
        if step is None:
            return
        with Image.open(io.BytesIO(store.read_bytes(path))) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        key = PurePosixPath(folder).name
        self._client.log_image(self.run_id, pixels, key=key, step=step, synchronous=True)


@contextmanager
def start_run(config: RunConfig, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Open the run of this training, or continue the one that an earlier attempt left unfinished.

    Logs the flattened config, a fingerprint tag per stage, the manifests of the stages that the training reads, and
    the ingested data set as the run's input; samples system metrics meanwhile. The run ends FINISHED, FAILED on an
    exception, KILLED on an interrupt.
    """
    uri = tracking_uri()
    client = MlflowClient(uri)
    experiment_id = _experiment(client, config.experiment, uri)
    all_tags = {**fingerprint_tags(config), "smooth.preset": config.preset, **(tags or {})}
    found = _unfinished(client, experiment_id, config.fingerprint("train"))
    if found is None:
        found = client.create_run(experiment_id, run_name=name, tags=context_registry.resolve_tags())
    run = Run(client, found.info.run_id)
    client.update_run(run.run_id, status="RUNNING")
    all_tags |= _log_params(client, found, flatten(config.model_dump(mode="json")))
    run.set_tags(all_tags)
    monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run.run_id, resume_logging=True, tracking_uri=uri
    )
    monitor.start()  # type: ignore[no-untyped-call]
    status = "FAILED"
    try:
        _log_manifests(run, config, ("ingest", "latents"))
        _log_dataset(client, run, config)
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]
        try:
            run.flush()
        finally:
            client.set_terminated(run.run_id, status)


@contextmanager
def start_evaluation(config: RunConfig, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """Open a run for models that no run here trained, with the evaluation's settings as its parameters."""
    uri = tracking_uri()
    client = MlflowClient(uri)
    created = client.create_run(
        _experiment(client, config.experiment, uri), run_name=redact(name), tags=context_registry.resolve_tags()
    )
    run = Run(client, created.info.run_id)
    status = "FAILED"
    try:
        _log_params(client, created, flatten({"evaluate": config.evaluate.model_dump(mode="json")}))
        run.set_tags(tags)
        yield run
        run.flush()
        status = "FINISHED"
    finally:
        client.set_terminated(run.run_id, status)


@contextmanager
def resume_run(run_id: str) -> Iterator[Run]:
    """Write to an existing run, whatever its status, which stays as it is: judging a model can't fail its training.

    Raises:
        ValueError: the tracking server has no such run.
    """
    uri = tracking_uri()
    client = MlflowClient(uri)
    try:
        client.get_run(run_id)
    except MlflowException as error:
        raise ValueError(
            f"no MLflow run {run_id} at {redact(uri)} ({error.message}); point MLFLOW_TRACKING_URI to the server "
            f"that the training logged to, or train again"
        ) from error
    run = Run(client, run_id)
    try:
        yield run
    finally:
        run.flush()


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    """Id of the experiment, made if it is missing (another process may make it meanwhile)."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # Without a server MLflow would put artifacts into ./mlruns: keep them beside the database.
        database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        location = str(database.resolve().parent / "mlartifacts" / name) if database else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        found = client.get_experiment_by_name(name)
        if found is None:
            raise ValueError(f"experiment={name}: MLflow refuses the name and does not list it; choose another")
    if found.lifecycle_stage != "active":
        raise ValueError(f"experiment={name} was deleted in MLflow; restore it there or choose another name")
    return str(found.experiment_id)


def _unfinished(client: MlflowClient, experiment_id: str, train_fingerprint: str) -> MlflowRun | None:
    query = f"tags.`{FINGERPRINT_TAG}train` = '{train_fingerprint}' and attributes.status != 'FINISHED'"
    runs = client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"], max_results=1)
    return runs[0] if runs else None


def _log_params(client: MlflowClient, run: MlflowRun, params: dict[str, str]) -> dict[str, str]:
    """Log the parameters; those that a resumed run holds with another value (MLflow's never change) become tags."""
    known = run.data.params
    new = [Param(key, value) for key, value in params.items() if key not in known]
    for start in range(0, len(new), PARAMS_PER_REQUEST):
        client.log_batch(run.info.run_id, params=new[start : start + PARAMS_PER_REQUEST])
    return {f"smooth.resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}


def _log_manifests(run: Run, config: RunConfig, stages: tuple[Stage, ...]) -> None:
    for stage in stages:
        folder = config.stage_dir(stage)
        if store.is_complete(folder):
            run.log_artifact(store.join(folder, store.MANIFEST), f"manifests/{stage}")


def _log_dataset(client: MlflowClient, run: Run, config: RunConfig) -> None:
    """Name the ingested pictures as the run's input, by the digest of their shards, and show their funnel."""
    folder = config.stage_dir("ingest")
    if not store.is_complete(folder):
        return
    manifest = store.read_manifest(folder)
    for picture in manifest["pictures"]:
        run.log_picture(store.join(folder, picture), "ingest")
    protocol = folder.partition("://")[0] if "://" in folder else "local"
    profile = {"rows": manifest["kept"], "source": manifest["source"], "licence": manifest["licence"]}
    dataset = Dataset(
        name=f"{config.preset}-{config.fingerprint('ingest')}",
        digest=manifest["digest"][:DIGEST_LENGTH],
        source_type=protocol,
        source=json.dumps({"uri": redact(folder)}),
        profile=redact(json.dumps(profile)),
    )
    client.log_inputs(run.run_id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])])
