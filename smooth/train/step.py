"""One optimizer step: base loss plus the weighted variation penalty (eq. 14), over all micro-steps and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from smooth.data.loader import Batch
from smooth.diffusion.estimators import Denoise, Denoiser, Estimate, denoise_from, norms_only
from smooth.diffusion.objective import denoising_loss
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation, global_mean
from smooth.train.engine import Engine
from smooth.train.state import DivergenceError


@dataclass(frozen=True)
class StepResult:
    """Means over the global batch; the regularizer's, over its regularized samples, are None where there are none."""

    loss: float
    loss_base: float
    regularizer: float | None = None
    norm: float | None = None
    target: float | None = None
    difference_error: float | None = None  # relative; how far the difference quotients are from the norms

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
        """Train on one global batch and return its means; ``step`` counts from 1.

        Raises:
            DivergenceError: a loss is not finite (on any rank); the weights are left as they were.
        """
        batches = [batch.to(self.engine.device) for batch in micro_batches]
        due = [self.variation.is_due((step - 1) * len(batches) + number) for number in range(len(batches))]
        if any(due) and self.variation.target is None:
            self._start_target(batches)
        base_losses, regularizers = [], []
        for number, batch in enumerate(batches):
            output, estimate = self._forward(batch, due[number])
            base = denoising_loss(output, self.schedule.target(batch.latents, batch.noise, batch.timesteps))
            loss = base.mean()
            regularizer = None
            if estimate is not None:
                penalty = self.variation.penalty(estimate.norms)
                regularizer = torch.stack([penalty, estimate.norms, estimate.error], dim=1)
                loss = loss + self.variation.weight * penalty.mean()
                del penalty
            self.engine.backward(loss)
            base_losses.append(base.detach())
            regularizers.append(None if regularizer is None else regularizer.detach())
            del output, estimate, loss, regularizer
            if number + 1 < len(batches):
                self.engine.step()
        result = self._result(torch.cat(base_losses), [values for values in regularizers if values is not None])
        if not math.isfinite(result.loss):
            raise self._divergence(step, batches, base_losses, regularizers)
        self.engine.step()
        if result.norm is not None:
            self.variation.update(result.norm)
        return result

    def _start_target(self, batches: Sequence[Batch]) -> None:
        """Give the target its first value, the mean of the first batch, by one pass ahead of the first step."""
        probe = self.engine.probe or self.engine
        norms = torch.cat([norms_only(self._denoise(batch, probe), batch.noise, batch.direction) for batch in batches])
        (mean,) = global_mean(norms[:, None])
        self.variation.update(mean)

    def _forward(self, batch: Batch, regularized: bool) -> tuple[Tensor, Estimate | None]:
        """The network's output, and the estimate that it came with on a regularized micro-step."""
        denoise = self._denoise(batch, self.engine)
        if not regularized:
            return denoise(batch.noise)[0], None
        probe = None if self.engine.probe is None else self._denoise(batch, self.engine.probe)
        estimate = self.variation.estimator(denoise, batch.noise, batch.direction, probe)
        return estimate.output, estimate

    def _denoise(self, batch: Batch, network: Denoiser) -> Denoise:
        return denoise_from(network, self.schedule, batch.latents, batch.timesteps, batch.text)

    def _result(self, base_losses: Tensor, regularizers: list[Tensor]) -> StepResult:
        """The step's means over all ranks; ``regularizers`` holds (penalty, norm, error) rows of micro-batches."""
        if not regularizers:
            (base,) = global_mean(base_losses[:, None])
            return StepResult(loss=base, loss_base=base)
        values = torch.cat(regularizers)
        (base,) = global_mean(base_losses[:, None])
        penalty, norm, error = global_mean(values)
        share = len(values) / len(base_losses)
        return StepResult(
            loss=base + self.variation.weight * share * penalty,
            loss_base=base,
            regularizer=penalty,
            norm=norm,
            target=self.variation.target,
            difference_error=error,
        )

    def _divergence(
        self,
        step: int,
        batches: Sequence[Batch],
        base_losses: Sequence[Tensor],
        regularizers: Sequence[Tensor | None],
    ) -> DivergenceError:
        """The error, with the samples at fault gathered from all ranks."""
        bad: list[int] = []
        for batch, base, values in zip(batches, base_losses, regularizers, strict=True):
            finite = base.isfinite()
            if values is not None:
                finite = finite & values[:, 0].isfinite()
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
