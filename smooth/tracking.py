"""One MLflow run per trained model: parameters, metrics, pictures and lineage of everything it was made from.

A run is found again by the fingerprint of its training, so a retried stage continues its run instead of
opening a second one, and evaluation and registration write to the run of the model that they judge.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context import registry as context_registry
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from smooth import store
from smooth.config import STAGES, RunConfig, Stage
from smooth.redact import flatten
from smooth.redact import redact as redact
from smooth.settings import Services, home
from smooth.tracked import Run as Run
from smooth.tracked import answering, is_away

FINGERPRINT_TAG = "smooth.fingerprint."
SQLITE = "sqlite:///"
PARAMS_PER_REQUEST = 100
DIGEST_LENGTH = 32  # MLflow takes at most 36 characters of a data set's


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
    return f"{SQLITE}{database}"


def missing_database(uri: str) -> Path | None:
    """The SQLite file that a tracking URI names and that is not there: a client that only asks would make it."""
    database = Path(uri.removeprefix(SQLITE))
    return database if uri.startswith(SQLITE) and not database.exists() else None


def fingerprint_tags(config: RunConfig, stages: tuple[Stage, ...] = STAGES) -> dict[str, str]:
    """The lineage tags of a run: one fingerprint a stage."""
    return {f"{FINGERPRINT_TAG}{stage}": config.fingerprint(stage) for stage in stages}


@contextmanager
def start_run(config: RunConfig, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Open the run of this training, or continue the one that an earlier attempt left unfinished.

    Logs the flattened config, a fingerprint tag per stage, the manifests of the stages that the training reads, and
    the ingested data set as the run's input; samples system metrics meanwhile. The run ends FINISHED, FAILED on an
    exception, KILLED on an interrupt.

    Raises:
        AwayError: the server does not answer.
    """
    uri = tracking_uri()
    client = MlflowClient(uri)
    with answering(uri):
        experiment_id = _experiment(client, config.experiment, uri)
        all_tags = {**fingerprint_tags(config), "smooth.preset": config.preset, **(tags or {})}
        found = _unfinished(client, experiment_id, config.fingerprint("train"))
        if found is None:
            found = client.create_run(experiment_id, run_name=name, tags=context_registry.resolve_tags())
        client.update_run(found.info.run_id, status="RUNNING")
        all_tags |= _log_params(client, found, flatten(config.model_dump(mode="json")))
        with _open(Run(client, found.info.run_id, uri, config.stage_dir("train"))) as run:
            run.set_tags(all_tags)
            _log_manifests(run, config, ("ingest", "latents"))
            _log_dataset(client, run, config)
            with _system_metrics(run, uri):
                yield run


@contextmanager
def _open(run: Run) -> Iterator[Run]:
    """Write to a run, and end it by what becomes of the block."""
    status = "FAILED"
    try:
        yield run
        run.settle()
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        run.end(status)


@contextmanager
def _system_metrics(run: Run, uri: str) -> Iterator[None]:
    monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run.run_id, resume_logging=True, tracking_uri=uri
    )
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]


@contextmanager
def start_evaluation(config: RunConfig, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """Open a run for models that no run here trained, with the evaluation's settings as its parameters."""
    uri = tracking_uri()
    client = MlflowClient(uri)
    with answering(uri):
        experiment_id = _experiment(client, config.experiment, uri)
        created = client.create_run(experiment_id, run_name=redact(name), tags=context_registry.resolve_tags())
        with _open(Run(client, created.info.run_id, uri)) as run:
            _log_params(client, created, flatten({"evaluate": config.evaluate.model_dump(mode="json")}))
            run.set_tags(tags)
            yield run


@contextmanager
def resume_run(run_id: str, folder: str | None = None) -> Iterator[Run]:
    """Write to an existing run, whatever its status, which stays as it is: judging a model can't fail its training.

    With a ``folder`` (the training's own), what can't be sent is kept there.

    Raises:
        ValueError: the tracking server has no such run.
        AwayError: it does not answer.
    """
    uri = tracking_uri()
    client = MlflowClient(uri)
    with answering(uri):
        try:
            client.get_run(run_id)
        except MlflowException as error:
            if is_away(error):
                raise
            raise ValueError(
                f"no MLflow run {run_id} at {redact(uri)} ({error.message}); point MLFLOW_TRACKING_URI to the server "
                f"that the training logged to, or train again"
            ) from error
        run = Run(client, run_id, uri, folder)
        try:
            yield run
            run.flush()
        finally:
            run.close()


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
