"""What Prefect shows of a stage: progress, log lines, a table of what was made, pictures."""

from __future__ import annotations

import base64
import logging
import re
import time
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from smooth import progress, store
from smooth.config import Stage

PROGRESS_SECONDS = 2.0
BURST_LINES = 40
LINES_PER_SECOND = 4.0
MAX_PICTURE_BYTES = 2_000_000
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Follower:
    """Turns a job's log into a progress artifact and a bounded number of log lines."""

    def __init__(self, stage: Stage, logger: Logger) -> None:
        self._stage = stage
        self._logger = logger
        self._artifact = cast(UUID, create_progress_artifact(0.0, key=f"{stage}-progress", description=stage))
        self._shown_at = float("-inf")
        self._budget = float(BURST_LINES)
        self._refilled_at = time.monotonic()
        self._left_out = 0

    def feed(self, line: str) -> None:
        """Take one line of the job's log."""
        step = progress.parse(line)
        if step is None:
            self._forward(ANSI.sub("", line).rstrip())
        elif time.monotonic() - self._shown_at >= PROGRESS_SECONDS or step.done >= step.total:
            self._shown_at = time.monotonic()
            text = step.text()
            self._logger.info(text)
            update_progress_artifact(self._artifact, progress=step.percent, description=text)

    def finish(self) -> None:
        """The job has succeeded."""
        if self._left_out:
            self._logger.info("%d log lines were left out here; the Ray job's log has them all", self._left_out)
        update_progress_artifact(self._artifact, progress=100.0)

    def _forward(self, line: str) -> None:
        """Log the line, unless the job is chattier than Prefect's database should have to bear."""
        now = time.monotonic()
        self._budget = min(BURST_LINES, self._budget + (now - self._refilled_at) * LINES_PER_SECOND)
        self._refilled_at = now
        if not line:
            return
        if self._budget < 1:
            self._left_out += 1
            return
        self._budget -= 1
        self._logger.info(line)


def show_manifest(stage: Stage, folder: str, manifest: dict[str, Any]) -> None:
    """Publish the stage's summary as a table, and its pictures."""
    rows = "\n".join(
        f"| {_cell(name)} | {_cell(progress.number(value))} |" for name, value in manifest["summary"].items()
    )
    create_markdown_artifact(
        f"# {stage}\n\n`{manifest['fingerprint']}`, {manifest['seconds']:.1f} s\n\n"
        f"| | |\n|---|---|\n{rows}\n\nArtifact: `{folder}`\n",
        key=f"{stage}-summary",
        description=f"What {stage} made",
    )
    for name in manifest["pictures"]:
        show_picture(stage, store.join(folder, name))


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def show_picture(stage: str, path: str) -> None:
    """Publish a PNG of any fsspec path."""
    show_png(stage, path, store.read_bytes(path))


def show_png(stage: str, name: str, content: bytes) -> None:
    """Publish a PNG inside a Markdown artifact: the browser may have no way to the artifact store.

    (Prefect's image artifact prints its URL under the picture, which here would be the picture in base64.)
    """
    if len(content) > MAX_PICTURE_BYTES:
        body = f"`{name}` ({len(content) / 1e6:.1f} MB) is too large to be shown here; the MLflow run has it."
    else:
        body = f"![{name}](data:image/png;base64,{base64.b64encode(content).decode()})"
    create_markdown_artifact(body, key=picture_key(stage, name), description=name)


def picture_key(stage: str, path: str) -> str:
    """An artifact key of lower-case letters, digits and dashes: ``evaluate-strips``."""
    name = path.rpartition("/")[2].rpartition(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", f"{stage}-{name}".lower()).strip("-")
