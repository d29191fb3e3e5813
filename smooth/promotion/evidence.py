"""What the registry holds of a version that a gate can judge: its evaluation, and the way back to its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smooth import store
from smooth.config import STAGES
from smooth.evaluate.metric import Metric
from smooth.evaluate.networks import PER_PROMPT
from smooth.promotion.registry import EVIDENCE, FINGERPRINT_TAG, Registry

if TYPE_CHECKING:
    from smooth.promotion.registry import Run

PICTURES = ("strips.png", "curves.png")
MANIFESTS = ("ingest", "latents")


@dataclass(frozen=True)
class Measured:
    """One model's values under one evaluation."""

    name: str
    """what a person calls the model"""
    metrics: Mapping[str, Metric]
    istd: tuple[float, ...]
    """of each prompt; empty where the evaluation kept none"""


@dataclass(frozen=True)
class Evidence:
    """All that the gate takes from the registry of one version."""

    version: str
    measured: Measured
    base: Measured
    """its base model, under the same evaluation"""
    missing: tuple[str, ...]
    """of what leads back to the data, in words"""
    pictures: Mapping[str, bytes]


def read(registry: Registry, number: str, *, pictures: bool = False) -> Evidence:
    """Read a version's evidence. One without an evaluation has no values: the gate says so."""
    version = registry.version(number)
    run = registry.run(version)
    files: dict[str, bytes] = {}
    if run is not None:
        wanted = {store.MANIFEST, *(PICTURES if pictures else ())}
        folder = f"{EVIDENCE}/{version.tags.get(f'{FINGERPRINT_TAG}evaluate')}"
        files = {name: registry.read(run, f"{folder}/{name}") for name in wanted & registry.artifacts(run, folder)}
    manifest = json.loads(files.pop(store.MANIFEST, b'{"metrics": []}'))
    return Evidence(
        version=number,
        measured=_measured(manifest, "smooth", f"version {number}"),
        base=_measured(manifest, "base", f"its base {version.tags.get('smooth.base', 'unknown')}"),
        missing=tuple(_missing(registry, version.tags, run)),
        pictures={name: files[name] for name in PICTURES if name in files},
    )


def _measured(manifest: Mapping[str, Any], model: str, name: str) -> Measured:
    metrics = [Metric(**values) for values in manifest["metrics"]]
    return Measured(
        name,
        {metric.name: metric for metric in metrics if metric.model == model},
        tuple(manifest.get(PER_PROMPT, {}).get(model, ())),
    )


def _missing(registry: Registry, tags: Mapping[str, str], run: Run | None) -> list[str]:
    found = [f"tag {tag}" for stage in STAGES if not tags.get(tag := f"{FINGERPRINT_TAG}{stage}")]
    if run is None:
        return [*found, "the training's run"]
    training = f"{FINGERPRINT_TAG}train"
    if run.data.tags.get(training) != tags.get(training):
        found.append(f"a run of the same training (run {run.info.run_id} is of another)")
    held = (f"manifests/{stage}" for stage in MANIFESTS)
    return found + [f"the run's {folder}" for folder in held if store.MANIFEST not in registry.artifacts(run, folder)]
