"""Model FLOPs against sums over layers, the peak of a device, and the time of collectives against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from smooth.config import TrainConfig
from smooth.train.communication import covered
from smooth.train.rehearsal import Shapes, flops_per_sample
from smooth.train.utilisation import Utilisation, known_peak, peak_tflops
from tests.numerics.networks import unet

SHAPES = Shapes((4, 16, 16), (5, 32), {})


@contextmanager
def counted(network: nn.Module, totals: list[int]) -> Iterator[None]:
    """Adds 2 FLOPs for each multiplication of a convolution or linear layer that runs, told by its output's shape."""

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            each = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        else:
            assert isinstance(layer, nn.Linear)
            each = layer.in_features
        totals.append(2 * each * output.numel())

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    yield
    for hook in hooks:
        hook.remove()


def forward_flops(network: UNet2DConditionModel) -> tuple[int, int]:
    """Of one forward pass: its layers', and those of both products of each attention."""
    totals: list[int] = []
    products: list[int] = []
    real = nn.functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        heads, length, width = query.shape[1:]
        products.append(4 * heads * length * key.shape[2] * width)
        return real(query, key, value, **settings)

    with pytest.MonkeyPatch.context() as patch, counted(network, totals), torch.no_grad():
        patch.setattr(nn.functional, "scaled_dot_product_attention", attention)
        network(torch.randn(1, *SHAPES.latent), torch.tensor([5]), torch.randn(1, *SHAPES.text))
    return sum(totals), sum(products)


def of(**settings: Any) -> float:
    config = TrainConfig(global_batch_size=4, micro_batch_size=1, workers=1, **settings)
    return flops_per_sample(dict(unet((16, 32), layers=1, text_width=32).config), config, SHAPES)


def test_flops_are_those_of_the_passes() -> None:
    layers, attention = forward_flops(unet((16, 32), layers=1, text_width=32))
    plain = of(method="full", variation={"weight": 0})
    # Forward, gradients of the weights and of what goes in; the first layers give none of what goes in.
    assert plain == pytest.approx(3 * (layers + attention), rel=0.02)
    lora = of(lora={"rank": 1}, variation={"weight": 0})
    assert lora == pytest.approx(2 * layers + 3 * attention, rel=0.04)  # no gradients of the frozen weights
    regularized = of(method="full")
    # One more forward pass, a pass back to the noise alone, and a backward pass through both graphs.
    assert regularized == pytest.approx(7 * layers + 8 * attention, rel=0.02)
    assert of(method="full", gradient_checkpointing=True, zero_stage=3) == regularized
    assert of(method="full", variation={"every": 4}) == pytest.approx(plain + (regularized - plain) / 4)


def test_utilisation_is_told_where_a_peak_is_known() -> None:
    assert Utilisation(flops=2e12, peak=None).metrics(50) == {"tflops_per_worker": 100.0}
    assert Utilisation(flops=2e12, peak=400.0).metrics(50)["model_flops_utilisation"] == 0.25
    assert peak_tflops(TrainConfig(), torch.device("cpu")) is None
    assert peak_tflops(TrainConfig(peak_tflops=0.1), torch.device("cpu")) == 0.1
    names = {
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA L4": 121,
        "NVIDIA L40S": 362,
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None,
        "NVIDIA RTX A1000": None,
    }
    assert {name: known_peak(name) for name in names} == names


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=6), st.integers(0, 20))
def test_overlapping_spans_count_once(starts: list[tuple[int, int]], since: int) -> None:
    spans = [(float(start), float(start + length)) for start, length in starts]
    seconds = [second for second in range(since, 40) if any(a <= second < b for a, b in spans)]
    assert covered(spans, since) == len(seconds)
