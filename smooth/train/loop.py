"""The training loop on one rank: load, step, log, checkpoint, validate. The mathematics is in step.py."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

from torch import distributed as dist

from smooth import progress, store
from smooth.data.dataset import LatentsDataset
from smooth.data.loader import Batch, LatentLoader
from smooth.data.readahead import ReadAhead
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation
from smooth.models.lora import save_lora
from smooth.models.pipeline import load_pipeline
from smooth.train.engine import Engine
from smooth.train.job import Place, TrainJob
from smooth.train.state import TrainState
from smooth.train.step import StepResult, TrainingStep
from smooth.train.text import embedder
from smooth.train.validation import Validator

PROGRESS_LINES = 50  # of a whole run


class Training:
    """Everything that one rank holds."""

    def __init__(self, job: TrainJob, place: Place) -> None:
        """Load model and data; shard the model. Every rank calls it."""
        config = job.config
        self.job, self.place = job, place
        pipeline = load_pipeline(job.base, revision=config.model.revision)
        self.vae = pipeline.vae.to(place.device) if place.rank == 0 else None
        schedule = NoiseSchedule(pipeline.scheduler.alphas_cumprod, pipeline.scheduler.config.prediction_type)
        dataset = LatentsDataset(job.latents)
        self.loader = LatentLoader(
            dataset, seed=config.seed, timesteps=schedule.steps, caption_dropout=config.train.caption_dropout
        )
        self.embed = embedder(dataset, pipeline.text_encoder, place.device)
        self.validator = Validator(
            pipeline.scheduler,
            dataset,
            self.embed,
            seed=config.seed,
            guidance=config.evaluate.guidance,
            device=place.device,
        )
        self.engine = Engine(pipeline.unet, config.train, config.seed, place.device)
        self.variation = StepwiseVariation(config.train.variation, dtype=self.engine.dtype)
        self.train_step = TrainingStep(self.engine, schedule.to(place.device), self.variation)
        self.state = TrainState(seed=config.seed, workers=place.ranks, data=dataset.ingested)

    def run(self, restore: Path | None) -> TrainState:
        """Train to the last step, from the checkpoint in ``restore`` if there is one; write the adapter."""
        if restore is not None:
            self.load(restore)
        config = self.job.config.train
        firsts = count(self.state.samples_seen, config.global_batch_size)
        with closing(self.loader.dataset), ReadAhead(self._micro_batches, firsts) as batches:
            while self.state.step < config.steps:
                self.advance(batches)
                last = self.state.step == config.steps
                if self.state.step % config.checkpoint_every == 0 or last:
                    self.place.checkpoint(self.save, self.state.step)
                if self.state.step % config.validate_every == 0 or last:
                    self.validate()
        weights = self.engine.lora_weights()
        if self.place.rank == 0:
            save_lora(self.job.folder, weights, self.engine.unet)
        return self.state

    def _micro_batches(self, samples_seen: int) -> list[Batch]:
        """This rank's share of the global batch that starts at ``samples_seen``."""
        config = self.job.config.train
        return self.loader.micro_batches(
            samples_seen, config.global_batch_size, config.micro_batch_size, self.place.rank, self.place.ranks
        )

    def advance(self, batches: Iterator[list[Batch]]) -> None:
        """One optimizer step, on the next of ``batches``, and its log."""
        started = time.monotonic()
        state, config = self.state, self.job.config.train
        micro_batches = next(batches)
        waited = time.monotonic() - started
        embedded = [replace(batch, text=self.embed(batch.text)) for batch in micro_batches]
        result = self.train_step(embedded, state.step + 1)
        state.step += 1
        state.samples_seen += config.global_batch_size
        state.metrics = {
            **self._metrics(result, config.global_batch_size / (time.monotonic() - started)),
            "data_wait_seconds": waited,
        }
        if self.place.rank == 0:
            self.place.log(state.metrics, state.step)
            if state.step % max(1, config.steps // PROGRESS_LINES) == 0 or state.step in (1, config.steps):
                facts = {name: float(f"{value:.4g}") for name, value in state.metrics.items()}
                progress.report("train", state.step, config.steps, "steps", **facts)

    def _metrics(self, result: StepResult, samples_per_second: float) -> dict[str, float]:
        return {
            **result.metrics(),
            "samples_per_second": samples_per_second,
            "learning_rate": self.engine.learning_rate,
        }

    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint."""
        self.state.variation = self.variation.state_dict()
        self.engine.save(folder)
        if self.place.rank == 0:
            self.state.save(folder)
            (folder / "deepspeed.json").write_text(json.dumps(self.engine.settings, indent=2) + "\n")
            (folder / "run_config.yaml").write_text(self.job.config.to_yaml())

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint of all ranks in ``folder``.

        Raises:
            TrainError: it was made with another seed, from other data or by another number of workers.
        """
        state = TrainState.load(folder)
        state.check_resumable(self.state)
        self.engine.load(folder)
        if state.variation is not None:
            self.variation.load_state_dict(state.variation)
        self.state = state

    def validate(self) -> None:
        """Draw the validation pictures on rank 0; the others wait, or take part where the weights are sharded."""
        if self.vae is not None or self.engine.gathers_weights:
            latents = self.validator.sample(self.engine)
            if self.vae is not None:
                path = store.join(self.job.folder, "validation", f"step-{self.state.step:06d}.png")
                store.write_bytes(path, self.validator.picture(latents, self.vae))
                self.place.picture(path, self.state.step)
        if dist.is_initialized():
            dist.barrier()
