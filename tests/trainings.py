"""Trainings of a small UNet by the real step, loader, engine and checkpoint, in processes of their own, without Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import distributed as dist

from smooth.config import RunConfig
from smooth.data.dataset import LatentsDataset
from smooth.data.loader import LatentLoader
from smooth.diffusion.variation import StepwiseVariation
from smooth.train import checkpoint
from smooth.train.engine import Engine, start_engine
from smooth.train.optimizer import learning_rate
from smooth.train.state import TrainState
from smooth.train.step import TrainingStep
from tests.numerics.networks import schedule, unet
from tests.ranks import start

GLOBAL, MICRO = 4, 1


@dataclass(frozen=True)
class Plan:
    """One training: how, up to which step, and what happens on the way."""

    name: str
    stage: int = 0
    steps: int = 4
    settings: dict[str, Any] = field(default_factory=dict)  # of the train section
    start: str | None = None  # the training whose checkpoint it goes on from
    save_at: int | None = None
    broken: tuple[int, ...] = ()  # steps whose first sample is infinite

    def config(self, workers: int) -> RunConfig:
        values = {
            "steps": 100,
            "global_batch_size": GLOBAL,
            "micro_batch_size": MICRO,
            "workers": workers,
            "zero_stage": self.stage,
            "learning_rate": 1e-3,
            **self.settings,
        }
        return RunConfig.parse({"seed": 5, "ingest": {"url_list": "list.parquet"}, "train": values})


@dataclass(frozen=True)
class Trained:
    """What came out."""

    losses: list[float]
    updated: list[bool]
    weights: dict[str, Tensor]
    state: dict[str, Any]


def train(root: Path, latents: Path, plans: list[Plan], ranks: int) -> dict[str, Trained]:
    """Run the plans one after the other on ``ranks`` gloo processes; ``root`` holds their checkpoints."""
    start(ranks, _train_all, plans, root, latents)
    return {plan.name: _read(root / plan.name) for plan in plans}


def _read(folder: Path) -> Trained:
    facts = json.loads((folder / "facts.json").read_text())
    return Trained(weights=load_file(folder / "weights.safetensors"), **facts)


def _train_all(plans: list[Plan], root: Path, latents: Path) -> None:
    for plan in plans:
        _train(plan, root, latents)


def _train(plan: Plan, root: Path, latents: Path) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config = plan.config(ranks)
    engine = start_engine(unet((16, 32), layers=1, text_width=32), config.train, config.seed, torch.device("cpu"))
    variation = StepwiseVariation(config.train.variation, dtype=engine.dtype)
    step = TrainingStep(engine, schedule(), variation)
    loader = LatentLoader(
        LatentsDataset(str(latents)), seed=config.seed, timesteps=1000, caption_dropout=0.1, global_batch_size=GLOBAL
    )
    state = TrainState(seed=config.seed, data="synthetic")
    if plan.start is not None:
        state = _restore(root / plan.start / "checkpoint", engine, variation)
    losses, updated = [], []
    while state.step < plan.steps:
        engine.learning_rate = learning_rate(config.train, state.step + 1)
        batches = loader.micro_batches(state.samples_seen, MICRO, rank, ranks)
        if rank == 0 and state.step + 1 in plan.broken:
            batches[0].latents[0, 0, 0, 0] = torch.inf
        result = step(batches)
        state.step += 1
        state.samples_seen += GLOBAL
        losses.append(result.loss)
        updated.append(result.updated)
        if state.step == plan.save_at:
            _save(root / plan.name / "checkpoint", engine, variation, state, config)
    weights = engine.result()
    if rank == 0:
        folder = root / plan.name
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "weights.safetensors")
        facts = {"losses": losses, "updated": updated, "state": variation.state_dict()}
        (folder / "facts.json").write_text(json.dumps(facts))
    dist.barrier()


def _save(folder: Path, engine: Engine, variation: StepwiseVariation, state: TrainState, config: RunConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state.variation, state.scaler, state.updates = variation.state_dict(), engine.scaler, engine.updates
    checkpoint.save(folder, engine, state, config, write=dist.get_rank() == 0)
    dist.barrier()


def _restore(folder: Path, engine: Engine, variation: StepwiseVariation) -> TrainState:
    state = TrainState.load(folder)
    checkpoint.load(folder, engine, state)
    assert state.variation is not None
    variation.load_state_dict(state.variation)
    return state
