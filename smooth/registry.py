"""The register stage: the adapter becomes a version of an MLflow model, with its metrics and its lineage.

The version holds MLflow's own diffusers flavour (adapter and base reference). Its pyfunc flavour is ours, see
``registry_pyfunc``: it takes a seed.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.diffusers
import mlflow.pyfunc
import pandas as pd
import yaml
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from smooth import registry_pyfunc, stages, store, tracking
from smooth.config import REGISTERED, RunConfig, model_identity, resolve_model
from smooth.models import trained_files
from smooth.registry_card import card

TRAIN_TAG = f"{tracking.FINGERPRINT_TAG}train"
EVIDENCE = "registered"
"""folder of the run that holds, by fingerprint, the evaluations that versions were registered with"""


class SmoothFlavor:
    """MLflow's diffusers flavour with our pyfunc loader in the place of its own."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **arguments: Any) -> None:
        """Save the model folder at ``path``; called by ``Model.log``."""
        code = registry_pyfunc.__file__
        # For Model.log alone, which would load the base to paint the example: minutes, and gigabytes from a hub.
        arguments.pop("validate_serving_input")
        mlflow.diffusers.save_model(path=path, mlflow_model=mlflow_model, code_paths=[code], **arguments)
        mlflow_model.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.MAIN] = Path(code).stem
        mlflow_model.save(str(Path(path, MLMODEL_FILE_NAME)))


def run(config: RunConfig) -> dict[str, Any]:
    """Register the adapter, or find the version that it already is; then point the alias to it.

    Raises:
        store.ArtifactError: training or evaluation is not finished.
    """
    folder = config.stage_dir("register")
    if store.is_complete(folder) and stages.status("register", config) != "to do":
        return store.read_manifest(folder)
    started = time.monotonic()
    training = store.read_manifest(config.stage_dir("train"))
    evaluation = store.read_manifest(config.stage_dir("evaluate"))
    uri = tracking.tracking_uri()
    client = MlflowClient(uri)
    name, alias = config.register_.name, config.register_.alias
    version = _find(client, name, config.fingerprint("train"))
    if version is None:
        # Model.log knows no client, and would put the model into the default experiment.
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(experiment_id=client.get_run(training["run_id"]).info.experiment_id)
        version = _log(client, config, training, evaluation)
    with tracking.resume_run(training["run_id"]) as tracked:
        keep_evidence(tracked, config.stage_dir("evaluate"), evaluation)
        _describe(client, config, version, training, evaluation)
        client.set_registered_model_alias(name, alias, str(version.version))
        tracked.set_tags(
            tracking.fingerprint_tags(config, ("register",)) | {"smooth.version": f"{name}/{version.version}"}
        )
    model_uri = f"{REGISTERED}{name}@{alias}"
    return store.write_manifest(
        folder,
        {
            "stage": "register",
            "fingerprint": config.fingerprint("register"),
            "seconds": time.monotonic() - started,
            "summary": {"model": name, "version": int(version.version), "alias": alias, "uri": model_uri},
            "pictures": [],
            "name": name,
            "version": int(version.version),
            "alias": alias,
            "uri": model_uri,
            "run_id": training["run_id"],
            "ingest": training["ingest"],
            "evaluation": store.digest(config.stage_dir("evaluate")),
        },
    )


def fetch(uri: str, root: str) -> tuple[str, str | None, str]:
    """Copy what was trained of ``models:/NAME@ALIAS`` (or ``/NAME/VERSION``) below ``root``, on any fsspec path.

    Returns:
        Its base model, that one's revision, and the folder that the copy lies in, named by the content.

    Raises:
        ArtifactError: no such version, or none that this project registered.
    """
    tracked = tracking.tracking_uri()
    mlflow.set_tracking_uri(tracked)  # a models:/ name is looked up there, whatever is passed to the download
    with tempfile.TemporaryDirectory(prefix="smooth-registered-") as temporary:
        try:
            found = mlflow.artifacts.download_artifacts(uri, dst_path=temporary)
        except (MlflowException, OSError) as error:
            raise store.ArtifactError(
                f"{uri} can't be fetched from {tracking.redact(tracked)}: {tracking.redact(str(error))}; see the "
                "registry for names, versions and aliases, and set MLFLOW_TRACKING_URI for another server"
            ) from error
        described = yaml.safe_load(Path(found, MLMODEL_FILE_NAME).read_text())
        flavor = described["flavors"].get("diffusers", {})
        base = (described.get("metadata") or {}).get("smooth.base")
        if base is None or "adapter_weights" not in flavor:
            raise store.ArtifactError(f"{uri} was not registered by the register stage: it names no base model")
        adapter = str(Path(found, flavor["adapter_weights"]).resolve())
        if not Path(adapter).is_relative_to(Path(found).resolve()):
            raise store.ArtifactError(f"{uri} names weights outside of itself: {flavor['adapter_weights']}")
        files = {name: store.read_bytes(store.join(adapter, name)) for name in trained_files(adapter)}
    digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in files.values())).hexdigest()
    folder = store.join(root, digest[:16])
    for name, data in files.items():
        store.write_bytes(store.join(folder, name), data)
    return registry_pyfunc.find_base(base, flavor), described["metadata"].get("smooth.base_revision"), folder


def resolve(uri: str) -> str:
    """The ``models:/NAME/VERSION`` that ``models:/NAME@ALIAS`` or ``models:/NAME/latest`` means now.

    A version means itself, and nobody is asked.

    Raises:
        ArtifactError: no such alias, or the registry doesn't answer.
    """
    if uri.rpartition("/")[2].isdecimal():
        return uri
    tracked = tracking.tracking_uri()
    if database := tracking.missing_database(tracked):
        raise store.ArtifactError(f"{uri}: no {database}; run the chain first, or set MLFLOW_TRACKING_URI")
    try:
        found = get_model_name_and_version(MlflowClient(tracked), uri)  # type: ignore[no-untyped-call]
    except (MlflowException, OSError) as error:
        raise store.ArtifactError(
            f"{tracking.redact(tracked)} does not tell what {uri} is: {tracking.redact(str(error))}"
        ) from error
    return REGISTERED + "/".join(str(part) for part in found)  # a database's versions are numbers, a server's words


def versions(most: int) -> list[tuple[str, list[str]]]:
    """The newest versions that the register stage made: ``models:/NAME/VERSION`` with the aliases that point to it.

    Args:
        most: of each model.

    Raises:
        ArtifactError: the tracking server doesn't answer.
    """
    uri = tracking.tracking_uri()
    if tracking.missing_database(uri):
        return []
    client, found = MlflowClient(uri), []
    try:
        for model in client.search_registered_models():
            pointing: dict[str, list[str]] = {}
            for alias, number in model.aliases.items():
                pointing.setdefault(str(number), []).append(alias)
            listed = client.search_model_versions(
                f"name = '{model.name}'", max_results=most, order_by=["version_number DESC"]
            )
            found += [
                (f"{REGISTERED}{model.name}/{each.version}", sorted(pointing.get(str(each.version), [])))
                for each in listed
                if TRAIN_TAG in each.tags
            ]
    except (MlflowException, OSError) as error:
        raise store.ArtifactError(
            f"{tracking.redact(uri)} does not answer; set MLFLOW_TRACKING_URI for another server"
        ) from error
    return found


def signature(config: RunConfig) -> ModelSignature:
    """Prompt and an optional seed in, PNG bytes out; the defaults are this model's size, steps and guidance."""
    size = config.latents.image_size
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt"), ColSpec(DataType.long, "seed", required=False)]),
        outputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema(
            [
                ParamSpec("seed", DataType.long, 0),
                ParamSpec("num_inference_steps", DataType.integer, config.evaluate.steps),
                ParamSpec("guidance_scale", DataType.double, config.evaluate.guidance),
                ParamSpec("height", DataType.integer, size),
                ParamSpec("width", DataType.integer, size),
                ParamSpec("negative_prompt", DataType.string, ""),
            ]
        ),
    )


def _find(client: MlflowClient, name: str, train_fingerprint: str) -> ModelVersion | None:
    """The version of this very training, making the model if it is missing."""
    try:
        client.create_registered_model(name, description="Smooth Diffusion adapters (LoRA), one version a training.")
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    found = client.search_model_versions(f"name = '{name}'")
    same = [version for version in found if version.tags.get(TRAIN_TAG) == train_fingerprint]
    return max(same, key=lambda version: int(version.version)) if same else None


def _log(client: MlflowClient, config: RunConfig, training: dict[str, Any], evaluation: dict[str, Any]) -> ModelVersion:
    """Log the model to the training's run and make a version of it."""
    with tempfile.TemporaryDirectory(prefix="smooth-register-") as temporary:
        adapter = Path(temporary, "adapter")
        adapter.mkdir()
        for name in trained_files(config.stage_dir("train")):
            (adapter / name).parent.mkdir(exist_ok=True)
            (adapter / name).write_bytes(store.read_bytes(store.join(config.stage_dir("train"), name)))
        (adapter / "README.md").write_text(card(config, training, evaluation))
        for picture in evaluation["pictures"]:
            data = store.read_bytes(store.join(config.stage_dir("evaluate"), picture))
            (adapter / picture).write_bytes(data)
        logged = Model.log(
            None,
            SmoothFlavor,
            name="adapter",
            run_id=training["run_id"],
            adapter_path=str(adapter),
            base_model=resolve_model(config.model.base),
            signature=signature(config),
            input_example=pd.DataFrame({"prompt": ["a red heart"], "seed": [7]}),
            validate_serving_input=False,
            metadata={
                "smooth.base": config.model.base,
                "smooth.base_revision": config.model.revision,
                "smooth.base_identity": model_identity(config.model.base, config.model.revision),
            },
        )
    return client.create_model_version(
        config.register_.name,
        source=logged.model_uri,
        run_id=training["run_id"],
        model_id=logged.model_id,
        tags={TRAIN_TAG: config.fingerprint("train")},
    )


def keep_evidence(tracked: tracking.Run, folder: str, evaluation: dict[str, Any]) -> None:
    """Copy the evaluation that the version is registered with, under its fingerprint: promotion judges by it.

    ``evaluate/`` of the run is overwritten by the next evaluation of the same training.
    """
    place = f"{EVIDENCE}/{folder.rpartition('/')[2]}"
    for name in evaluation["pictures"]:
        tracked.log_artifact(store.join(folder, name), place)
    tracked.log_artifact(store.join(folder, store.MANIFEST), place)


def _describe(
    client: MlflowClient,
    config: RunConfig,
    version: ModelVersion,
    training: dict[str, Any],
    evaluation: dict[str, Any],
) -> None:
    name, number = config.register_.name, str(version.version)
    tags = tracking.fingerprint_tags(config) | {"smooth.base": config.model.base, "smooth.preset": config.preset}
    for metric in evaluation["metrics"]:
        if metric["value"] is not None:
            tags[f"smooth.metric.{_tag_name(metric['name'])}.{_tag_name(metric['model'])}"] = f"{metric['value']:.6g}"
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, tracking.redact(value))
    client.update_model_version(name, number, description=card(config, training, evaluation))


def _tag_name(text: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in text.lower()).strip("_")
