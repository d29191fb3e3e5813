"""Registered versions that cost next to nothing: one training's adapter, with evaluations of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from smooth import registry, store, tracking
from smooth.config import RunConfig, model_identity
from smooth.evaluate.istd import STAMP, bootstrap
from smooth.evaluate.metric import Metric
from smooth.evaluate.networks import EFFICIENTNET, PER_PROMPT
from tests.evaluated import trained
from tests.shards import png

KID = f"KID ({EFFICIENTNET}) x1000"
PROMPTS = 12
BASE_ISTD, BASE_KID = 3.0, 500.0


def by_prompt(mean: float, spread: float = 0.1) -> list[float]:
    """The same prompts are hard for all models, so that pairs differ by less than the values do."""
    draws = np.random.default_rng(0).normal(0, 0.5, PROMPTS) + np.random.default_rng(int(mean * 1e3)).normal(
        0, spread, PROMPTS
    )
    return list(mean + draws - draws.mean())


def manifest(
    base: str, istd: float, kid: float = BASE_KID, clip: float | None = None, **stamp: str | int | float
) -> dict[str, Any]:
    """An evaluation's manifest: these values of a smooth model beside those of its base."""
    stamped: dict[str, Any] = {"base": model_identity(base, None), "seed": 42, "prompts": "synthetic", **stamp}
    pairs = {"base": (BASE_ISTD, BASE_KID, 27.0), "smooth": (istd, kid, clip)}
    metrics = []
    for model, (mean, distance, score) in pairs.items():
        found = bootstrap(np.array(by_prompt(mean)), 42)
        metrics.append(Metric("ISTD", model, found.value, found.low, found.high, PROMPTS, stamped | STAMP))
        metrics.append(Metric(KID, model, distance, None, None, 150, stamped))
        scored = Metric("CLIP score", model, score, None, None, 150, stamped)
        metrics.append(scored if clip is not None else replace(scored, value=None, note="needs CLIP"))
    return {
        "stage": "evaluate",
        "metrics": [metric.as_dict() for metric in metrics],
        "pictures": ["strips.png", "curves.png"],
        PER_PROMPT: {model: by_prompt(mean) for model, (mean, _, _) in pairs.items()},
    }


def evaluated(config: RunConfig, found: dict[str, Any]) -> None:
    """Finish the evaluate stage with a manifest and its pictures."""
    write_evaluation(config.stage_dir("evaluate"), found)


def write_evaluation(folder: str, found: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    for name in found["pictures"]:
        store.write_bytes(store.join(folder, name), png(pixels))
    store.write_manifest(folder, found)


class Shelf:
    """A registered model whose versions share one training's adapter and run."""

    def __init__(self, name: str, source: ModelVersion, scratch: Path, base: str) -> None:
        self.name = name
        self.client = MlflowClient(tracking.tracking_uri())
        self._source, self._scratch, self._base = source, scratch, base
        self.client.create_registered_model(name)

    def add(self, istd: float, kid: float = BASE_KID, clip: float | None = None, **stamp: str | int | float) -> str:
        """Register a version that was evaluated so, as the register stage keeps it; return its number."""
        found = manifest(self._base, istd, kid, clip, **stamp)
        label = store.join(str(self._scratch), f"{self.name}-{len(list(self._scratch.iterdir()))}")
        write_evaluation(label, found)
        with tracking.resume_run(str(self._source.run_id)) as run:
            registry.keep_evidence(run, label, found)
        return self.clone({"smooth.fingerprint.evaluate": Path(label).name})

    def clone(self, changed: dict[str, str | None]) -> str:
        """A version with other tags; None leaves one away."""
        tags = {key: value for key, value in (self._source.tags | changed).items() if value is not None}
        source = str(self._source.source)
        made = self.client.create_model_version(
            self.name, source, self._source.run_id, tags=tags, model_id=source.removeprefix("models:/")
        )
        return str(made.version)

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model(self.name).aliases
        return {alias: str(version) for alias, version in found.items()}

    def tags(self, version: str) -> dict[str, str]:
        tags: dict[str, str] = self.client.get_model_version(self.name, version).tags
        return tags

    def point(self, alias: str, version: str) -> None:
        """As a person does in MLflow's page."""
        self.client.set_registered_model_alias(self.name, alias, version)


def registered(base: str, root: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, ModelVersion]:
    """Train, evaluate and register by the stages' own functions; the figures are synthetic."""
    config = trained(base, root, *overrides)
    if not store.is_complete(config.stage_dir("evaluate")):
        evaluated(config, manifest(base, 2.0))
    found = registry.run(config)
    client = MlflowClient(tracking.tracking_uri())
    return config, client.get_model_version(found["name"], str(found["version"]))
