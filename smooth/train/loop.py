"""The training loop on one rank: load, step, log, checkpoint, validate. The mathematics is in step.py."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import mean

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import distributed as dist

from smooth import progress, store
from smooth.data.dataset import LatentsDataset
from smooth.data.encoder import network_hashes
from smooth.data.loader import Batch, LatentLoader
from smooth.data.readahead import ReadAhead
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation
from smooth.models import trained
from smooth.models.pipeline import load_pipeline
from smooth.train import checkpoint
from smooth.train.communication import Collectives
from smooth.train.engine import start_engine
from smooth.train.job import Place, TrainJob
from smooth.train.optimizer import learning_rate
from smooth.train.rehearsal import Shapes, flops_per_sample
from smooth.train.samples import SampleLog
from smooth.train.state import DivergenceError, TrainError, TrainState
from smooth.train.step import StepResult, TrainingStep
from smooth.train.storage import patiently
from smooth.train.text import embedder
from smooth.train.utilisation import Utilisation, peak_tflops
from smooth.train.validation import Validator

logger = logging.getLogger(__name__)
PROGRESS_LINES = 50  # of a whole run
SHOWN = ("loss", "loss_base", "norm", "target", "samples_per_second", "skipped_steps")  # in them
NORM_ALARM = 10  # times the target: a regularizer that runs away


class Training:
    """Everything that one rank holds."""

    def __init__(self, job: TrainJob, place: Place) -> None:
        """Load model and data; shard the model. Every rank calls it."""
        config = job.config
        self.job, self.place = job, place
        self.config = config.train.with_workers(place.ranks)  # fewer than asked for where nodes are lost
        pipeline = load_pipeline(job.base, revision=config.model.revision)
        self.vae = pipeline.vae.to(place.device) if place.rank == 0 else None
        schedule = NoiseSchedule(pipeline.scheduler.alphas_cumprod, pipeline.scheduler.config.prediction_type)
        dataset = LatentsDataset(job.latents)
        check_networks(dataset, pipeline, job)
        self.loader = LatentLoader(
            dataset,
            seed=config.seed,
            timesteps=schedule.steps,
            caption_dropout=config.train.caption_dropout,
            global_batch_size=config.train.global_batch_size,
        )
        if place.rank == 0:
            self._warn_of_rare_sizes()
        self.embed = embedder(dataset, pipeline.text_encoder, place.device)
        self.validator = Validator(
            pipeline.scheduler,
            dataset,
            self.embed,
            seed=config.seed,
            guidance=config.evaluate.guidance,
            device=place.device,
        )
        self.utilisation = self._utilisation(pipeline.unet) if place.rank == 0 else None
        self.engine = start_engine(pipeline.unet, self.config, config.seed, place.device)
        self.variation = StepwiseVariation(config.train.variation, steps=schedule.steps, dtype=self.engine.dtype)
        self.train_step = TrainingStep(self.engine, schedule.to(place.device), self.variation)
        self.collectives = Collectives() if place.device.type == "cpu" else None
        self.state = TrainState(seed=config.seed, data=dataset.ingested)
        self.losses: list[float] = []  # since the last checkpoint
        self.samples = None
        if config.train.log_samples:
            self.samples = SampleLog(job.folder, place.rank, place.ranks, self.loader.row_number)

    def run(self, restore: Path | None) -> TrainState:
        """Train to the last step, from the checkpoint in ``restore`` if there is one; write what was trained.

        Raises:
            TrainError: the checkpoint is another run's, or the loss diverged.
            MemoryError: a step takes more memory than there is.
        """
        if restore is not None:
            self.load(restore)
        firsts = count(self.state.samples_seen, self.config.global_batch_size)
        with closing(self.loader.dataset), ReadAhead(self._micro_batches, firsts) as batches:
            while self.state.step < self.config.steps:
                try:
                    self.advance(batches)
                except torch.OutOfMemoryError as error:
                    # Not alike on every rank, so no TrainError: Ray ends the others.
                    raise MemoryError(self._out_of_memory()) from error
                self._keep()
        weights = self.engine.result(keep=self.place.rank == 0)
        if self.place.rank == 0:
            write = partial(trained.save, self.job.folder, weights, self.engine.unet, self.config)
            patiently(write, "what was trained")
        return self.state

    def _utilisation(self, unet: UNet2DConditionModel) -> Utilisation:
        seen = self.validator
        widths = {name: value.shape[1] for name, value in seen.added.items()}
        shapes = Shapes(tuple(seen.noise.shape[1:]), tuple(seen.text.shape[1:]), widths)
        flops = flops_per_sample(unet.config, self.config, shapes)
        return Utilisation(flops, peak_tflops(self.config, self.place.device))

    def _keep(self) -> None:
        """A checkpoint, validation pictures and an estimate of ISTD, where this step is due for them."""
        step, config = self.state.step, self.config
        last = step == config.steps
        if step % config.checkpoint_every == 0 or last:
            # Where no loss was finite, any other checkpoint is better.
            self.place.checkpoint(self.save, step, mean(self.losses or [sys.float_info.max]))
            self.losses.clear()
        if step % config.validate_every == 0 or last:
            self.validate()
        if config.istd_every and (step % config.istd_every == 0 or last):
            weights = self.engine.result(keep=self.place.rank == 0)  # gathered by all, as for a checkpoint
            if self.place.rank == 0:
                self.place.estimate(weights, step)

    def _micro_batches(self, samples_seen: int) -> list[Batch]:
        """This rank's share of the global batch that starts at ``samples_seen``."""
        return self.loader.micro_batches(samples_seen, self.config.micro_batch_size, self.place.rank, self.place.ranks)

    def _warn_of_rare_sizes(self) -> None:
        for shape, order in zip(self.loader.dataset.latent_shapes, self.loader.orders, strict=True):
            if 0 < order.rows < self.config.global_batch_size:
                logger.warning(
                    "only %d rows have latents of %s, less than train.global_batch_size=%d: a batch repeats them. "
                    "Leave that size out of latents.buckets, or get more pictures of it",
                    order.rows,
                    "x".join(map(str, shape)),
                    self.config.global_batch_size,
                )

    def advance(self, batches: Iterator[list[Batch]]) -> None:
        """One optimizer step, on the next of ``batches``, and its log."""
        started = time.monotonic()
        state, config = self.state, self.config
        self.engine.learning_rate = learning_rate(config, state.step + 1)
        micro_batches = next(batches)
        waited = time.monotonic() - started
        result = self.train_step([replace(batch, text=self.embed(batch.text)) for batch in micro_batches])
        state.step += 1
        state.samples_seen += config.global_batch_size
        if self.samples is not None:
            self.samples.add(state.step, torch.cat([batch.indices for batch in micro_batches]).tolist())
        if result.is_finite:
            self.losses.append(result.loss)
        self._guard(result, micro_batches)
        state.metrics = {**self._metrics(result, started), "seconds/data_wait": waited}
        if self.place.rank == 0:
            self._tell(result)

    def _guard(self, result: StepResult, batches: Sequence[Batch]) -> None:
        """Count the steps that were left out.

        Raises:
            DivergenceError: too many in a row.
        """
        state = self.state
        # Loss scaling finds its scale by overflows of the gradient; those are no one's fault.
        if result.is_finite and (result.updated or self.config.precision == "fp16"):
            state.skipped_in_row = 0
            return
        state.skipped += 1
        state.skipped_in_row += 1
        samples = self.train_step.samples_at_fault(batches)
        what = f"the loss or its gradient is not finite at step {state.step}, sample indices {samples or 'unknown'}"
        if state.skipped_in_row > self.config.max_skipped:
            raise DivergenceError(
                f"{what}; {state.skipped_in_row} steps in a row. Lower train.learning_rate or train.variation.weight, "
                "or use train.precision=fp32; the last checkpoint before is kept"
            )
        logger.warning("%s: the step is left out", what)

    def _tell(self, result: StepResult) -> None:
        """Log the step on rank 0."""
        state = self.state
        self.place.log(state.metrics, state.step)
        if result.norm is not None and result.target is not None and result.norm > NORM_ALARM * result.target:
            logger.warning(
                "the regularizer's norm is %.3g at step %d, its target %.3g: if it stays so, lower "
                "train.learning_rate or train.variation.weight",
                result.norm,
                state.step,
                result.target,
            )
        if state.step % max(1, self.config.steps // PROGRESS_LINES) == 0 or state.step in (1, self.config.steps):
            facts = {name: float(f"{state.metrics[name]:.4g}") for name in SHOWN if name in state.metrics}
            progress.report("train", state.step, self.config.steps, "steps", **facts)

    def _metrics(self, result: StepResult, started: float) -> dict[str, float]:
        """Of a step that began at ``started`` (``time.monotonic``)."""
        samples_per_second = self.config.global_batch_size / (time.monotonic() - started)
        timed = {f"seconds/{phase}": seconds for phase, seconds in self.train_step.times.take().items()}
        if self.collectives is not None and (communication := self.collectives.take(since=started)) is not None:
            timed["seconds/communication"] = communication
        if self.utilisation is not None:
            timed |= self.utilisation.metrics(samples_per_second / self.place.ranks)
        if self.place.device.type == "cuda":
            timed["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.place.device) / 2**30
        return {
            **result.metrics(),
            **timed,
            "samples_per_second": samples_per_second,
            "samples_seen": self.state.samples_seen,
            "skipped_steps": self.state.skipped,
            "workers": self.place.ranks,
            "learning_rate": self.engine.learning_rate,
        }

    def save(self, folder: Path) -> None:
        """Write a checkpoint on rank 0. Every rank calls it: the weights are gathered."""
        self.state.variation = self.variation.state_dict()
        self.state.scaler, self.state.updates = self.engine.scaler, self.engine.updates
        checkpoint.save(folder, self.engine, self.state, self.job.config, write=self.place.rank == 0)

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint in ``folder``, whatever number of ranks wrote it.

        Raises:
            TrainError: it was made with another seed, from other data or of another model.
        """
        state = TrainState.load(folder)
        state.check_resumable(self.state)
        checkpoint.load(folder, self.engine, state)
        if state.variation is not None:
            self.variation.load_state_dict(state.variation)
        self.state = state

    def validate(self) -> None:
        """Draw the validation pictures on rank 0; the others wait, or take part where the weights are sharded."""
        if self.vae is not None or self.engine.gathers_weights:
            latents = self.validator.sample(self.engine)
            if self.vae is not None:
                path = store.join(self.job.folder, "validation", f"step-{self.state.step:06d}.png")
                picture = self.validator.picture(latents, self.vae)
                patiently(partial(store.write_bytes, path, picture), path)
                self.place.picture(path, self.state.step)
        if dist.is_initialized():
            dist.barrier()

    def _out_of_memory(self) -> str:
        config = self.config
        return (
            f"out of memory at step {self.state.step + 1} with train.micro_batch_size={config.micro_batch_size}: lower "
            "it (more is accumulated, the training is the same), or set train.gradient_checkpointing=true, "
            f"train.offload_optimizer=true or a train.zero_stage above {config.zero_stage}"
        )


def check_networks(dataset: LatentsDataset, pipeline: StableDiffusionPipeline, job: TrainJob) -> None:
    """Latents of another VAE mean other pictures, and texts of another encoder other words.

    Raises:
        TrainError: the data set was made by other networks than the base's.
    """
    now = network_hashes(pipeline)
    other = [name for name, digest in dataset.networks.items() if now.get(name) != digest]
    if other:
        raise TrainError(
            f"{job.latents} was made with another {' and '.join(other)} than that of model.base={job.base}; run the "
            "latents stage for this base"
        )
