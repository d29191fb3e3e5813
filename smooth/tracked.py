"""An MLflow run that is being written to, while its server may be away."""

from __future__ import annotations

import io
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image

from smooth import store
from smooth.outbox import AwayError, Note, Outbox
from smooth.redact import redact

logger = logging.getLogger(__name__)
SETTLE_SECONDS = 900.0  # that a finished training waits for the server

_TEXT_SUFFIXES = frozenset({".json", ".yaml", ".yml", ".txt", ".md", ".csv", ".html"})


def is_away(error: MlflowException) -> bool:
    """Whether the server did not answer, rather than refuse."""
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
    return status >= 500


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Tell a server that is away from a request that it refuses.

    Raises:
        AwayError: in the place of MLflow's own error, which comes after its retries, some four minutes.
    """
    try:
        yield
    except MlflowException as error:
        if not is_away(error):
            raise
        cause = redact((str(error).splitlines() or [""])[0])
        raise AwayError(
            f"MLflow does not answer at {redact(uri)}, or fails ({cause}); look at `make cluster-status`, and run it "
            "again once it does: what is finished is kept"
        ) from error


class Run:
    """An MLflow run that is being written to.

    Metrics go by an outbox: who logs them never waits for the server, and with a ``folder`` none is lost while it is
    away. Call :meth:`flush` to see them at once.
    """

    def __init__(self, client: MlflowClient, run_id: str, uri: str, folder: str | None = None) -> None:
        self._client = client
        self._uri = uri
        self.run_id = run_id
        self._outbox = Outbox(self._send, folder)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record values of one step; they reach the server within seconds, many steps in one request."""
        now = round(time.time() * 1000)
        self._outbox.put(
            [{"metric": name, "value": float(value), "time": now, "step": step} for name, value in metrics.items()]
        )

    def send_picture(self, path: str, folder: str, step: int) -> None:
        """As :meth:`log_picture`, by the outbox."""
        self._outbox.put([{"picture": path, "folder": folder, "step": step}])

    def flush(self) -> None:
        """Wait until the server has all metrics; after some seconds keep them in the folder instead.

        Raises:
            AwayError: the server can't be reached (after MLflow's own retries), and the run has no folder.
        """
        self._outbox.flush()

    def settle(self) -> None:
        """Wait for the server to take all that there is, what others have left in the folder included.

        Raises:
            AwayError: it was away for `SETTLE_SECONDS`.
        """
        self._outbox.look()
        left = self._outbox.flush()
        if left:
            logger.warning(
                "MLflow at %s has yet to take the last metrics: waiting for it, %.0f minutes at most; "
                "`make cluster-status` tells how it is",
                redact(self._uri),
                SETTLE_SECONDS / 60,
            )
            left = self._outbox.flush(SETTLE_SECONDS)
        if left:
            raise AwayError(
                f"MLflow at {redact(self._uri)} has not answered for {SETTLE_SECONDS / 60:.0f} minutes. Nothing is "
                "lost: what it has not seen is kept beside the checkpoints. Start it (`make cluster-up`) and run this "
                "again: it goes on from the last checkpoint and sends the rest"
            )

    def close(self) -> None:
        """Write no more metrics."""
        self._outbox.close()

    def end(self, status: str) -> None:
        """Set the run's status, and let go of it; no more is written."""
        if status != "FINISHED":
            try:
                self.flush()
            except (AwayError, MlflowException, OSError) as error:  # told where it was met; the run ends all the same
                logger.warning("not all metrics of MLflow run %s were sent (%s)", self.run_id, redact(str(error)))
        self.close()
        try:
            self._client.set_terminated(self.run_id, status)
        except MlflowException as error:
            if status == "FINISHED":
                raise
            logger.warning("MLflow run %s could not be marked %s (%s)", self.run_id, status, redact(error.message))

    def _send(self, notes: list[Note]) -> None:
        metrics = [
            Metric(note["metric"], note["value"], note["time"], note["step"]) for note in notes if "metric" in note
        ]
        with answering(self._uri):
            if metrics:
                self._client.log_batch(self.run_id, metrics=metrics)
            for note in notes:
                if "picture" in note:
                    self.log_picture(note["picture"], note["folder"], note["step"])

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
