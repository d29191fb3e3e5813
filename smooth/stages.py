"""The five stages by name. A stage's module is imported only when the stage runs."""

from __future__ import annotations

import importlib
from typing import Any

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
    """Run one stage in this process and return its manifest; a finished artifact is returned as it is."""
    manifest: dict[str, Any] = importlib.import_module(MODULES[stage]).run(config)
    return manifest


def is_complete(stage: Stage, config: RunConfig) -> bool:
    """Whether the stage's artifact is finished. Latents also have to be those of the shards that are there now."""
    folder = config.stage_dir(stage)
    if not store.is_complete(folder):
        return False
    source = config.stage_dir("ingest")
    if stage != "latents" or not store.is_complete(source):  # latents alone, moved to where they are used
        return True
    from smooth.data.shards import digest

    return bool(store.read_manifest(folder).get("ingest") == digest(store.read_manifest(source)))
