"""One training step on one process, with a linear network in the engine's place."""

import math
import time
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from smooth.config import VariationConfig
from smooth.data.loader import Batch
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation
from smooth.train.engine import Engine
from smooth.train.step import TrainingStep

SHAPE = (1, 3, 3)


class PlainEngine:
    """The engine's interface over plain autograd and gradient descent."""

    probe = None

    def __init__(self, micro_steps: int) -> None:
        self.device = torch.device("cpu")
        self.layer = nn.Linear(9, 9)
        with torch.no_grad():
            self.layer.weight.copy_(0.1 * torch.arange(81.0).reshape(9, 9) / 81)
            self.layer.bias.zero_()
        self.micro_steps = micro_steps
        self.ended = 0
        self.gradient_norm = 0.0

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        return self.layer(noisy.flatten(1)).reshape(noisy.shape)

    def backward(self, loss: Tensor) -> None:
        (loss / self.micro_steps).backward()

    def step(self) -> bool:
        self.ended += 1
        if self.ended % self.micro_steps:
            return True
        self.gradient_norm = float(
            nn.utils.get_total_norm([p.grad for p in self.layer.parameters() if p.grad is not None])
        )
        finite = math.isfinite(self.gradient_norm)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                assert parameter.grad is not None
                if finite:
                    parameter -= 0.1 * parameter.grad
                parameter.grad = None
        return finite


def _batch(count: int = 4, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    latents, noise, direction = torch.randn(3, count, *SHAPE, generator=generator).unbind()
    timesteps = torch.arange(count) * 20
    return Batch(latents, noise, timesteps, direction / 3, torch.zeros(count, 1, 1), torch.arange(first, first + count))


def _split(batch: Batch, parts: int) -> list[Batch]:
    pieces = {name: value.chunk(parts) for name, value in vars(batch).items() if name != "added"}
    return [Batch(**{name: value[part] for name, value in pieces.items()}) for part in range(parts)]


def _step(engine: PlainEngine, weight: float, every: int = 1, knots: int = 1) -> TrainingStep:
    schedule = NoiseSchedule(torch.linspace(0.99, 0.1, 100), "epsilon")
    variation = StepwiseVariation(VariationConfig(weight=weight, every=every, target_knots=knots), steps=schedule.steps)
    return TrainingStep(cast(Engine, engine), schedule, variation)


@pytest.mark.parametrize("knots", [1, 4])
def test_accumulating_micro_steps_equals_the_whole_batch_at_once(knots: int) -> None:
    whole, split = PlainEngine(1), PlainEngine(4)
    steps = {1: _step(whole, weight=0.5, knots=knots), 4: _step(split, weight=0.5, knots=knots)}
    for _ in range(3):
        results = [steps[parts](_split(_batch(), parts)) for parts in (1, 4)]
        assert results[0].metrics() == pytest.approx(results[1].metrics(), rel=1e-4, abs=1e-4)
    torch.testing.assert_close(whole.layer.weight, split.layer.weight)
    targets = steps[1].variation.targets
    assert targets == pytest.approx(steps[4].variation.targets)
    assert len(set(targets or [])) == knots


def test_first_target_is_the_first_mean_and_loss_is_the_weighted_sum() -> None:
    result = _step(PlainEngine(1), weight=0.5)([_batch()])
    assert result.target == pytest.approx(result.norm)
    assert result.regularizer is not None
    assert result.loss == pytest.approx(result.loss_base + 0.5 * result.regularizer)


def test_without_weight_the_regularizer_is_neither_computed_nor_reported() -> None:
    step = _step(PlainEngine(1), weight=0)
    assert step([_batch()]).metrics().keys() == {"loss", "loss_base", "gradient_norm"}
    assert step.variation.targets is None


def test_lazy_micro_steps_carry_the_weight_of_those_between() -> None:
    engine = PlainEngine(1)
    lazy = _step(engine, weight=0.5, every=2)
    first, second, third = (lazy([_batch(first=4 * number)]) for number in range(3))
    assert first.regularizer is not None
    assert third.regularizer is not None
    assert first.loss == pytest.approx(first.loss_base + 2 * 0.5 * first.regularizer)
    assert second.metrics().keys() == {"loss", "loss_base", "gradient_norm"}
    assert lazy.variation.count == 3  # the start, and the two regularized steps
    # Two micro-steps, the first of them regularized, are the whole batch with the weight on its first half.
    split = _step(PlainEngine(2), weight=0.5, every=2)(_split(_batch(), 2))
    assert split.regularizer is not None
    assert split.loss == pytest.approx(split.loss_base + 0.5 * split.regularizer)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_loss_that_is_not_finite_leaves_the_weights_and_names_the_samples(weight: float) -> None:
    engine = PlainEngine(2)
    step = _step(engine, weight)
    step(_split(_batch(), 2))
    before, targets = engine.layer.weight.detach().clone(), step.variation.targets
    broken = _batch(first=100)
    latents = broken.latents.clone()
    latents[2, 0, 0, 0] = torch.inf
    batches = _split(replace(broken, latents=latents), 2)
    result = step(batches)
    assert not result.updated
    assert not result.is_finite
    assert step.samples_at_fault(batches) == [102]
    assert torch.equal(engine.layer.weight, before)
    assert step.variation.targets == targets
    assert step(_split(_batch(), 2)).updated


def test_the_time_of_a_step_is_that_of_its_phases() -> None:
    step = _step(PlainEngine(2), weight=0.5)
    started = time.perf_counter()
    step(_split(_batch(), 2))
    whole, phases = time.perf_counter() - started, step.times.take()
    assert set(phases) == {"forward", "regularizer", "backward", "optimizer"}
    assert 0 < sum(phases.values()) < whole
    assert step.times.take() == {}
