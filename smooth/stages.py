"""The five stages by name. A stage's module is imported only when the stage runs.

A manifest's ``ingest`` is the digest of the data that all of it was made from: `smooth ingest retry` changes the data
of a finished ingest, and what was made before is then not taken for what would be made now.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from smooth import store
from smooth.config import RunConfig, Stage

MODULES: dict[Stage, str] = {
    "ingest": "smooth.data.ingest",
    "latents": "smooth.data.latents",
    "train": "smooth.train.launch",
    "evaluate": "smooth.evaluate.run",
    "register": "smooth.registry",
}


def run(stage: Stage, config: RunConfig) -> dict[str, Any]:
    """Run one stage in this process and return its manifest; a finished artifact is returned as it is.

    Raises:
        ArtifactError: the artifact is finished, and made from data that has changed since.
    """
    if status(stage, config) == "stale":
        raise store.ArtifactError(
            f"{config.stage_dir(stage)} was made before `smooth ingest retry` changed the data; set another seed to "
            "train on the data as it is now, beside what is there"
        )
    manifest: dict[str, Any] = importlib.import_module(MODULES[stage]).run(config)
    return manifest


def status(stage: Stage, config: RunConfig) -> Literal["complete", "stale", "to do"]:
    """Whether the stage's artifact is finished.

    Stale latents are to do: what has changed is encoded. So is an evaluation for which a network has come to hand, on
    this machine: it is measured again, from the pictures that were kept. The registry then has to be told anew.
    """
    folder = config.stage_dir(stage)
    if not store.is_complete(folder):
        return "to do"
    source = config.stage_dir("ingest")
    if stage == "ingest" or not store.is_complete(source):  # an artifact alone, moved to where it is used
        return "complete"
    manifest = store.read_manifest(folder)
    if manifest.get("ingest") != store.read_manifest(source)["digest"]:
        return "to do" if stage == "latents" else "stale"
    if stage == "evaluate":
        from smooth.evaluate.networks import is_outdone

        return "to do" if is_outdone(config.evaluate, manifest) else "complete"
    if stage == "register":
        evaluation = config.stage_dir("evaluate")
        known = not store.is_complete(evaluation) or manifest.get("evaluation") == store.digest(evaluation)
        return "complete" if known else "to do"
    return "complete"
