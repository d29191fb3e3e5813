"""Flow ``smooth-train``: the whole chain on one page."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.parameters import Override, Preset
from flows.stages import run_stage
from smooth.config import RunConfig


@flow(name="smooth-train", flow_run_name="{preset}", validate_parameters=True)
def smooth_train(preset: Preset = "tiny", overrides: tuple[Override, ...] = ()) -> dict[str, Any]:
    """Make a model smooth, measure it and register it.

    Args:
        preset: name of a preset, or path of a .yaml file.
        overrides: ``dotted.key=value`` changes to it, for example ``train.steps=100``.

    Returns:
        The manifest of the registered version.
    """
    config = RunConfig.load(preset, overrides)
    run_stage("ingest", config)
    run_stage("latents", config)
    run_stage("train", config)
    run_stage("evaluate", config)
    return run_stage("register", config)
