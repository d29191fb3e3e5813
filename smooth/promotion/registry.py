"""MLflow's registry as promotion needs it: read the books, an evaluation or a model; write a tag or an alias."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import Run as Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.pyfunc import PyFuncModel

from smooth import registry_pyfunc, tracking
from smooth.promotion import PREVIOUS, PRODUCTION, PromotionError
from smooth.promotion.records import Books, History, from_tag, to_tag
from smooth.registry import EVIDENCE as EVIDENCE

HISTORY_TAG = "smooth.promotions"
GATE_TAG = "smooth.gate"
HEAD_TAG = "smooth.production"
FINGERPRINT_TAG = tracking.FINGERPRINT_TAG


class Registry:
    """One registered model of the tracking server.

    Raises:
        PromotionError: there is no such model, or no server answers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.uri = tracking.tracking_uri()
        if database := tracking.missing_database(self.uri):
            raise PromotionError(f"no {database}: run the chain first, or set MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)  # what artifacts are fetched from has no other way to know
        self._client = MlflowClient(self.uri)

    def books(self) -> Books:
        """Aliases and moves, as they are now. Aliases first: a move's record is there before its alias."""
        try:
            model = self._client.get_registered_model(self.name)
            histories = {str(each.version): _history(each) for each in self._versions()}
        except (MlflowException, OSError) as error:
            raise PromotionError(
                f"{self.name} can't be read from {tracking.redact(self.uri)}: {tracking.redact(str(error))}; run "
                "the chain first, or set MLFLOW_TRACKING_URI for another server"
            ) from error
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        return Books(self.name, aliases, model.tags.get(HEAD_TAG, ""), histories)

    def version(self, number: str) -> ModelVersion:
        """One version, with its tags."""
        return self._client.get_model_version(self.name, number)

    def run(self, version: ModelVersion) -> Run | None:
        """The training's run; None where it is gone."""
        try:
            return self._client.get_run(version.run_id) if version.run_id else None
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return None
            raise

    def artifacts(self, run: Run, folder: str) -> set[str]:
        """Names of the files in a run's folder."""
        return {item.path.rpartition("/")[2] for item in self._client.list_artifacts(run.info.run_id, folder)}

    def read(self, run: Run, path: str) -> bytes:
        """A file of a run."""
        with tempfile.TemporaryDirectory(prefix="smooth-evidence-") as temporary:
            return Path(self._client.download_artifacts(run.info.run_id, path, temporary)).read_bytes()

    def fetch(self, number: str, folder: Path) -> Path:
        """Copy the whole registered model below ``folder``.

        Raises:
            PromotionError: it could not be copied, which says nothing about the model.
        """
        uri = f"models:/{self.name}/{number}"
        try:
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
        except (MlflowException, OSError) as error:
            raise PromotionError(
                f"{uri} can't be fetched from {tracking.redact(self.uri)}, nothing was changed: "
                f"{tracking.redact(str(error))[:500]}; ask again once its files are there and {folder} has room"
            ) from error

    def load(self, folder: Path) -> Any:
        """A fetched model by its pyfunc flavour, with our loader: MLflow's `load_model` would run the model's own."""
        return PyFuncModel(Model.load(str(folder)), registry_pyfunc.TextToImage(folder, {}))

    def write_gate(self, number: str, text: str) -> None:
        """Keep the gate's table on a version."""
        self._client.set_model_version_tag(self.name, number, GATE_TAG, text)

    def write_history(self, number: str, history: History) -> None:
        """Keep a version's moves."""
        self._client.set_model_version_tag(self.name, number, HISTORY_TAG, to_tag(history))

    def erase_history(self, number: str) -> None:
        """Of a version that never was in production."""
        self._client.delete_model_version_tag(self.name, number, HISTORY_TAG)

    def write_head(self, record_id: str) -> None:
        """Note which move is the last."""
        self._client.set_registered_model_tag(self.name, HEAD_TAG, record_id)

    def point_production(self, number: str) -> None:
        """Set the alias: the commit point of every move."""
        self._client.set_registered_model_alias(self.name, PRODUCTION, number)

    def point_previous(self, number: str | None) -> None:
        """Set or take away the alias `previous`."""
        if number is None:
            self._client.delete_registered_model_alias(self.name, PREVIOUS)
        else:
            self._client.set_registered_model_alias(self.name, PREVIOUS, number)

    def _versions(self) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        token = None
        while True:
            page = self._client.search_model_versions(f"name = '{self.name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                return found


def _history(version: ModelVersion) -> History:
    text = version.tags.get(HISTORY_TAG)
    return () if text is None else from_tag(str(version.version), text)
