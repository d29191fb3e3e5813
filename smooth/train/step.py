"""One optimizer step: base loss plus the weighted variation penalty (eq. 14), over all micro-steps and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch import distributed as dist

from smooth.data.loader import Batch
from smooth.diffusion.estimators import Denoise, Estimate, denoise_from, norms_only
from smooth.diffusion.objective import denoising_loss
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation, global_mean
from smooth.train.engine import Conditioned, Engine
from smooth.train.times import StepTimes


@dataclass(frozen=True)
class StepResult:
    """Means over the global batch; the regularizer's, over its regularized samples, are None where there are none."""

    loss: float
    loss_base: float
    gradient_norm: float
    updated: bool  # False: the gradient is not finite, and the weights are as they were
    regularizer: float | None = None
    norm: float | None = None
    target: float | None = None
    difference_error: float | None = None  # relative; how far the difference quotients are from the norms

    @property
    def is_finite(self) -> bool:
        """Whether the loss is."""
        return math.isfinite(self.loss)

    def metrics(self) -> dict[str, float]:
        """The values that exist, by name."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "updated"}


class TrainingStep:
    """Computes steps on one rank. Batches are the rank's micro-batches of one global batch."""

    def __init__(self, engine: Engine, schedule: NoiseSchedule, variation: StepwiseVariation) -> None:
        self.engine = engine
        self.schedule = schedule
        self.variation = variation
        self.times = StepTimes(engine.device)

    def __call__(self, micro_batches: Sequence[Batch]) -> StepResult:
        """Train on one global batch and return its means.

        A gradient that is not finite, on any rank, leaves weights, optimizer and target as they were.
        """
        batches = [batch.to(self.engine.device) for batch in micro_batches]
        if self.variation.weight > 0 and self.variation.targets is None:
            self._start_target(batches)
        self.times.mark("start")
        rows, updated = [], True
        for batch in batches:
            rows.append(self._micro_step(batch))
            updated = self.engine.step()
            self.times.mark("optimizer")
        self.rows = torch.cat(rows)  # kept to find the samples at fault
        result, errors = self._result(self.rows, updated)
        if result.norm is not None and result.updated:
            self.variation.update(errors)
        return result

    def _micro_step(self, batch: Batch) -> Tensor:
        """Add a micro-batch's gradients; return (base loss, 0, ...) or (base, 1, penalty, norm, error, knots) rows."""
        output, estimate = self._forward(batch)
        base = denoising_loss(output, self.schedule.target(batch.latents, batch.noise, batch.timesteps))
        loss, rows = base.mean(), base.new_zeros(len(base), 5 + self.variation.knots)
        rows[:, 0] = base.detach()
        if estimate is not None:
            penalty = self.variation.penalty(estimate.norms, batch.timesteps)
            loss = loss + self.variation.weight * penalty.mean()
            rows[:, 1:5] = torch.stack(
                [torch.ones_like(base), penalty.detach(), estimate.norms.detach(), estimate.error.detach()], dim=1
            )
            rows[:, 5:] = self.variation.errors(estimate.norms, batch.timesteps)
        self.engine.backward(loss)
        self.times.mark("backward")
        return rows

    def _start_target(self, batches: Sequence[Batch]) -> None:
        """Give the target its first value, means of the first batch, by a pass a knot ahead of the first step."""
        probe = self.engine.probe or self.engine

        def norms(batch: Batch) -> Tensor:
            """(B, knots): of each sample at every place where the target starts."""
            moved = [replace(batch, timesteps=place) for place in self.variation.places(batch.timesteps)]
            found = [norms_only(self._denoise(each, probe), batch.noise, batch.direction) for each in moved]
            return torch.stack(found, dim=1)

        self.variation.start(global_mean(torch.cat([norms(batch) for batch in batches])))

    def _forward(self, batch: Batch) -> tuple[Tensor, Estimate | None]:
        """The network's output, and the estimate that it came with on a regularized micro-step."""
        denoise = self._denoise(batch, self.engine)
        # Micro-steps are counted over all ranks, so that any number of them regularizes the same samples.
        if not self.variation.is_due(int(batch.indices[0]) // len(batch.indices)):
            output = denoise(batch.noise)[0]
            self.times.mark("forward")
            return output, None
        probe = None if self.engine.probe is None else self._denoise(batch, self.engine.probe)
        # With a probe, the base point and the displaced one go through the network together: the forward pass.
        estimate = self.variation.estimator(self._timed(denoise), batch.noise, batch.direction, probe)
        self.times.mark("regularizer")
        return estimate.output, estimate

    def _timed(self, denoise: Denoise) -> Denoise:
        """Take the first pass for the step's own; what comes before and after it is the regularizer's."""
        passes = 0

        def timed(noise: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal passes
            if not passes:
                self.times.mark("regularizer")
            result = denoise(noise)
            self.times.mark("regularizer" if passes else "forward")
            passes += 1
            return result

        return timed

    def _denoise(self, batch: Batch, network: Conditioned) -> Denoise:
        told = partial(network, added=batch.added) if batch.added else network
        return denoise_from(told, self.schedule, batch.latents, batch.timesteps, batch.text)

    def _result(self, rows: Tensor, updated: bool) -> tuple[StepResult, list[float]]:
        """The step's means over all ranks of the rows of :meth:`_micro_step`; apart, those of the target's knots."""
        base, share, penalty, norm, error, *knots = global_mean(rows)
        result = StepResult(
            loss=base + self.variation.weight * penalty,
            loss_base=base,
            gradient_norm=self.engine.gradient_norm,
            updated=updated,
        )
        if not share:
            return result, knots
        told = replace(
            result,
            regularizer=penalty / share,
            norm=norm / share,
            target=(norm - sum(knots)) / share,
            difference_error=error / share,
        )
        return told, [value / share for value in knots]

    def samples_at_fault(self, batches: Sequence[Batch]) -> list[int]:
        """Indices of the last global batch's samples whose loss is not finite, of all ranks. Every rank calls it."""
        indices = torch.cat([batch.indices for batch in batches])
        bad: list[int] = indices[~self.rows.isfinite().all(dim=1).cpu()].tolist()
        gathered: list[list[int]] = [bad]
        if dist.is_initialized():
            gathered = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, bad)
        return sorted(index for part in gathered for index in part)
