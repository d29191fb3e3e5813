"""The optimizer's average against a plain loop, 8 bits against 32, and the learning rate against its formula."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from smooth.config import TrainConfig
from smooth.train.engine import PlainEngine
from smooth.train.optimizer import AVERAGE, AveragingAdamW, learning_rate, make_optimizer, moment_bytes
from smooth.train.state import TrainError
from tests.numerics.networks import unet


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


def engine(**settings: Any) -> PlainEngine:
    """Of a small UNet that is trained as a whole."""
    config = TrainConfig(method="full", zero_stage=0, micro_batch_size=24, learning_rate=1e-2, **settings)
    return PlainEngine(unet((16, 32), layers=1, text_width=32), config, 0, torch.device("cpu"))


def advance(trained: PlainEngine, steps: range) -> None:
    """Updates by gradients that depend on the step alone."""
    for step in steps:
        torch.manual_seed(step)
        for parameter in trained.parameters.values():
            parameter.grad = torch.randn_like(parameter)
        assert trained.step()


def test_eight_bits_are_close_to_thirty_two_and_go_on_from_a_checkpoint_to_the_same_bits() -> None:
    pytest.importorskip("bitsandbytes", reason="train.optimizer=adamw_8bit is for those who installed it")
    eight, plain = engine(optimizer="adamw_8bit", ema_decay=0.8), engine(ema_decay=0.8)
    start = eight.parameters["conv_in.weight"].detach().clone()
    for trained in (eight, plain):
        advance(trained, range(4))
    for of in (lambda one: one.parameters, lambda one: one.result()):
        moved, expected = (of(one)["conv_in.weight"].detach() - start for one in (eight, plain))
        assert (moved - expected).norm() < 0.05 * expected.norm()
    saved = {name: value.clone() for name, value in eight.state()}
    assert {value.dtype for value in saved.values()} == {torch.float32, torch.uint8}
    again = engine(optimizer="adamw_8bit", ema_decay=0.8)
    again.load_state(saved, eight.updates)
    for trained in (eight, again):
        advance(trained, range(4, 7))
    assert again.updates == eight.updates == 7
    both = dict(eight.state()), dict(again.state())
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())
    held = sum(value.nbytes for name, value in saved.items() if not name.startswith(("weights/", "ema/")))
    assert held == sum(moment_bytes(one.numel(), eight.config) for one in eight.parameters.values())


def test_eight_bits_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "smooth.train.eight_bit", raising=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(TrainError, match=r"pip install 'bitsandbytes>=0\.50', or set train\.optimizer=adamw"):
        make_optimizer([torch.nn.Parameter(torch.zeros(1))], TrainConfig(optimizer="adamw_8bit", zero_stage=0))
