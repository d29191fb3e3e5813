"""The whole loop, stopped anywhere and started anew: the bits of a run that was never stopped. No Ray, one rank."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from smooth.config import RunConfig
from smooth.train.job import Place, TrainJob
from smooth.train.loop import Training
from tests import history, small
from tests.synthetic import shapes_of, write_latents

STEPS, GLOBAL, ROWS = 9, 4, 11


@dataclass(frozen=True)
class Runs:
    """Trainings of the same, each in a folder of its own."""

    job: TrainJob
    root: Path

    def train(self, name: str, start: Path | None = None) -> Path:
        """Train to the end, from the checkpoint in ``start`` if there is one, with a checkpoint at every step."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.root))

        def keep(write: Any, step: int, _loss: float) -> None:
            at = folder / f"step-{step}"
            at.mkdir(parents=True)
            write(at)

        place = Place(0, 1, torch.device("cpu"), lambda *_: None, lambda *_: None, keep)
        Training(replace(self.job, folder=str(folder)), place).run(start)
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("resume")
    base = small.write_pipeline(root / "base")
    config = RunConfig.load(
        "tiny",
        [
            f"train.steps={STEPS}", f"train.global_batch_size={GLOBAL}", "train.micro_batch_size=1", "train.workers=1",
            "train.zero_stage=0", "train.checkpoint_every=1", "train.validate_every=100", "train.learning_rate=1e-3",
            "train.schedule=cosine", "train.warmup_steps=3", "train.ema_decay=0.9", "train.caption_dropout=0.3",
            "train.variation.every=2", "train.log_samples=true",
        ],
    )  # fmt: skip
    latents = write_latents(root / "latents", rows=ROWS, **(shapes_of(base) | {"latent_shape": small.LATENT_SHAPE}))
    return Runs(TrainJob(config, base, str(latents), ""), root)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Path:
    return runs.train("whole")


@settings(max_examples=2)
@given(stop=st.integers(1, STEPS - 1))
def test_a_run_stopped_at_any_step_ends_in_the_same_bits(runs: Runs, whole: Path, stop: int) -> None:
    resumed = runs.train(f"from-{stop}", whole / f"step-{stop}")
    for name in ("pytorch_lora_weights.safetensors", f"step-{STEPS}/training.safetensors"):
        ends = [load_file(folder / name) for folder in (resumed, whole)]
        assert ends[0].keys() == ends[1].keys()
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    done = history.effective(resumed)
    assert done == {step: samples for step, samples in history.effective(whole).items() if step > stop}


def test_every_sample_is_used_once_an_epoch(whole: Path) -> None:
    history.check(whole, STEPS, GLOBAL, ROWS)
    assert history.restarts(whole) == []
