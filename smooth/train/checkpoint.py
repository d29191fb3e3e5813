"""A checkpoint: the whole state of training as safetensors and JSON, for any number of ranks and any ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from smooth.config import RunConfig
from smooth.train.engine import Engine
from smooth.train.state import TrainError, TrainState

TENSORS = "training.safetensors"


def save(folder: Path, engine: Engine, state: TrainState, config: RunConfig, *, write: bool) -> None:
    """Write into ``folder`` where ``write`` is set. Every rank calls it: the weights are gathered one by one."""
    tensors = {}
    for name, tensor in engine.state():
        if write:
            tensors[name] = tensor.contiguous().clone()
    if not write:
        return
    save_file(tensors, folder / TENSORS)
    state.save(folder)
    (folder / "engine.json").write_text(json.dumps(engine.settings, indent=2) + "\n")
    (folder / "run_config.yaml").write_text(config.to_yaml())


def load(folder: Path, engine: Engine, state: TrainState) -> None:
    """Bring the engine where :func:`save` left another.

    Raises:
        TrainError: the folder holds no checkpoint that fits the engine.
    """
    try:
        engine.load_state(load_file(folder / TENSORS), state.updates)
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainError(
            f"the checkpoint {folder.name} can't be used: {error}; delete the stage's folder to start over"
        ) from error
    engine.scaler = state.scaler
