"""The five stages by name. A stage's module is imported only when the stage runs."""

from __future__ import annotations

import importlib
from typing import Any

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
