"""The optimizer's average against a plain loop, and the learning rate against its formula."""

from __future__ import annotations

import pytest
import torch

from smooth.config import TrainConfig
from smooth.train.optimizer import AVERAGE, AveragingAdamW, learning_rate


def test_weights_are_those_of_torch_and_the_average_that_of_a_loop() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(7), torch.randn(30, 7)
    config = TrainConfig(learning_rate=0.1, weight_decay=0.01, ema_decay=0.8)
    ours, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    averaging = AveragingAdamW([ours], config)
    averaging.start([ours])
    reference = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.01)
    average = start.clone()
    for number, gradient in enumerate(gradients, start=1):
        for parameter, optimizer in ((ours, averaging), (plain, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()
        decay = min(0.8, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * plain.detach()
    assert torch.equal(ours, plain)
    torch.testing.assert_close(averaging.state[ours][AVERAGE], average)


@pytest.mark.parametrize(("step", "expected"), [(1, 0.25), (4, 1.0), (5, 1.0), (10, 0.5), (14, 0.0244717418524)])
def test_the_learning_rate_warms_up_and_goes_down_half_a_cosine(step: int, expected: float) -> None:
    config = TrainConfig(steps=14, warmup_steps=4, schedule="cosine", learning_rate=2.0)
    assert learning_rate(config, step) == pytest.approx(2.0 * expected)


def test_a_constant_learning_rate_is_constant() -> None:
    config = TrainConfig(steps=9, learning_rate=3.0)
    assert {learning_rate(config, step) for step in range(1, 10)} == {3.0}
