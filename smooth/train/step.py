"""One optimizer step: base loss plus the weighted variation penalty (eq. 14), over all micro-steps and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from smooth.data.loader import Batch
from smooth.diffusion.objective import denoising_loss
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation, denoise_from, global_mean
from smooth.train.engine import Engine
from smooth.train.state import DivergenceError


@dataclass(frozen=True)
class StepResult:
    """Means over the global batch; the regularizer's are None where its weight is 0."""

    loss: float
    loss_base: float
    regularizer: float | None = None
    norm: float | None = None
    target: float | None = None

    def metrics(self) -> dict[str, float]:
        """The values that exist, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class TrainingStep:
    """Computes steps on one rank. Batches are the rank's micro-batches of one global batch."""

    def __init__(self, engine: Engine, schedule: NoiseSchedule, variation: StepwiseVariation) -> None:
        self.engine = engine
        self.schedule = schedule
        self.variation = variation

    def __call__(self, micro_batches: Sequence[Batch], step: int) -> StepResult:
        """Train on one global batch and return its means; ``step`` counts from 1 and names errors.

        Raises:
            DivergenceError: a loss is not finite (on any rank); the weights are left as they were.
        """
        batches = [batch.to(self.engine.device) for batch in micro_batches]
        if self.variation.weight > 0 and self.variation.target is None:
            self._start_target(batches)
        base_losses, norms = [], []
        for number, batch in enumerate(batches, start=1):
            base, norm = self._losses(batch)
            loss = base.mean()
            if self.variation.weight > 0:
                loss = loss + self.variation.weight * self.variation.penalty(norm).mean()
            self.engine.backward(loss)
            base_losses.append(base.detach())
            norms.append(norm.detach())
            if number < len(batches):
                self.engine.step()
        result = self._result(torch.cat(base_losses), torch.cat(norms))
        if not math.isfinite(result.loss):
            raise self._divergence(step, batches, base_losses, norms)
        self.engine.step()
        if result.norm is not None:
            self.variation.update(result.norm)
        return result

    def _start_target(self, batches: Sequence[Batch]) -> None:
        """Give the target its first value, the mean of the first batch, by one pass ahead of the first step."""
        norms = torch.cat([self._losses(batch)[1].detach() for batch in batches])
        (mean,) = global_mean(norms[:, None])
        self.variation.update(mean)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Base loss and variation norm of each sample, (B,) each; the norms are empty where the weight is 0."""
        denoise = denoise_from(self.engine, self.schedule, batch.latents, batch.timesteps, batch.text)
        if self.variation.weight > 0:
            output, norms = self.variation.estimator(denoise, batch.noise, batch.direction)
        else:
            output, _ = denoise(batch.noise)
            norms = output.new_empty(0)
        target = self.schedule.target(batch.latents, batch.noise, batch.timesteps)
        return denoising_loss(output, target), norms

    def _result(self, base_losses: Tensor, norms: Tensor) -> StepResult:
        if self.variation.weight == 0:
            (base,) = global_mean(base_losses[:, None])
            return StepResult(loss=base, loss_base=base)
        penalties = self.variation.penalty(norms)
        base, penalty, norm = global_mean(torch.stack([base_losses, penalties, norms], dim=1))
        return StepResult(
            loss=base + self.variation.weight * penalty,
            loss_base=base,
            regularizer=penalty,
            norm=norm,
            target=self.variation.target,
        )

    def _divergence(
        self, step: int, batches: Sequence[Batch], base_losses: Sequence[Tensor], norms: Sequence[Tensor]
    ) -> DivergenceError:
        """The error, with the samples at fault gathered from all ranks."""
        bad: list[int] = []
        for batch, base, norm in zip(batches, base_losses, norms, strict=True):
            finite = base.isfinite() & (norm.isfinite() if norm.numel() else True)
            bad += batch.indices[~finite.cpu()].tolist()
        gathered: list[list[int]] = [bad]
        if dist.is_initialized():
            gathered = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, bad)
        samples = sorted(index for part in gathered for index in part)
        return DivergenceError(
            f"the loss is not finite at step {step}, sample indices {samples}. Lower train.learning_rate or "
            f"train.variation.weight, or use train.precision=fp32; the checkpoint before is kept"
        )
