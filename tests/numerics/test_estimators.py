"""The first-order estimators against the exact double backward, and inside what a training loop puts around them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from smooth.config import VariationConfig, resolve_model
from smooth.diffusion.estimators import DIFFERENCE_STEPS, Denoiser, choose_estimator, denoise_from, norms_only
from smooth.diffusion.variation import StepwiseVariation
from tests.numerics.networks import Draws, adapted, caller, flat, loss_of, relative, schedule, unet

DIFFERENCES = ("one_sided_difference", "central_difference")
BALANCED = 1e-3  # at this weight both terms of the loss have a like share in the gradient of a random UNet


def _variation(estimator: str, dtype: torch.dtype = torch.float32, weight: float = 1) -> StepwiseVariation:
    config = VariationConfig.model_validate({"estimator": estimator, "weight": weight})
    variation = StepwiseVariation(config, dtype=dtype)
    variation.start([0.2])
    return variation


def _regularizer_gradient(
    network: UNet2DConditionModel,
    draws: Draws,
    estimator: str,
    *,
    prediction_type: str = "epsilon",
    dtype: torch.dtype = torch.float32,
    call: Denoiser | None = None,
) -> Tensor:
    """Gradient of the mean penalty by the trainable weights."""
    variation = _variation(estimator, dtype)
    denoise = denoise_from(call or caller(network), schedule(prediction_type), draws.clean, draws.timesteps, draws.text)
    norms = variation.estimator(denoise, draws.noise, draws.direction).norms
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return flat(torch.autograd.grad(variation.penalty(norms, draws.timesteps).mean(), parameters, allow_unused=True))


def _cosine(value: Tensor, reference: Tensor) -> float:
    return float(torch.cosine_similarity(value, reference, dim=0))


def _tiny(base: str) -> UNet2DConditionModel:
    return adapted(
        UNet2DConditionModel.from_pretrained(resolve_model(base), subfolder="unet", torch_dtype=torch.float32)
    )


def _medium(_base: str) -> UNet2DConditionModel:
    network = adapted(unet((64, 128, 256), text_width=128))
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(18e6, rel=0.05)
    return network


@pytest.mark.parametrize("make", [_tiny, _medium])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_gradient_in_float32_is_that_of_double_backward(
    make: Callable[[str], UNet2DConditionModel], prediction_type: str, tiny_base: str
) -> None:
    network = make(tiny_base)
    draws = Draws.make(4, text_width=network.config.cross_attention_dim)
    exact = _regularizer_gradient(network, draws, "double_backward", prediction_type=prediction_type)
    for estimator, tolerance in (("central_difference", 1e-3), ("one_sided_difference", 1e-2)):
        value = _regularizer_gradient(network, draws, estimator, prediction_type=prediction_type)
        assert _cosine(value, exact) >= 0.9999, estimator
        assert relative(value, exact) <= tolerance, estimator


@pytest.mark.parametrize("timestep", [10, 500, 990])
@pytest.mark.parametrize("count", [1, 3])
def test_gradient_agrees_at_each_timestep_and_batch_size(timestep: int, count: int) -> None:
    network = adapted(unet((16, 32), layers=1))
    draws = Draws.make(count, size=8)
    draws.timesteps.fill_(timestep)
    exact = _regularizer_gradient(network, draws, "double_backward")
    for estimator in DIFFERENCES:
        assert _cosine(_regularizer_gradient(network, draws, estimator), exact) >= 0.9999, estimator


@pytest.mark.parametrize(
    ("dtype", "central", "one_sided"), [(torch.bfloat16, 0.99, 0.98), (torch.float16, 0.999, 0.99)]
)
def test_half_precision_with_its_documented_step(
    dtype: torch.dtype, central: float, one_sided: float, tiny_base: str
) -> None:
    network = _tiny(tiny_base)
    draws = Draws.make(2, text_width=network.config.cross_attention_dim)
    exact = _regularizer_gradient(network, draws, "double_backward")
    for estimator, least in (("central_difference", central), ("one_sided_difference", one_sided)):
        with torch.autocast("cpu", dtype):
            value = _regularizer_gradient(network, draws, estimator, dtype=dtype)
        assert _cosine(value, exact) >= least, estimator


def _assert_gradient_of_double_backward(
    network: UNet2DConditionModel, estimator: str, around: AbstractContextManager[object]
) -> None:
    draws = Draws.make(2, size=8)
    reference = loss_of(caller(network), draws, schedule(), _variation("double_backward", weight=BALANCED))
    reference.backward()
    expected = flat(parameter.grad for parameter in network.parameters())
    network.zero_grad()
    with around:
        loss = loss_of(caller(network), draws, schedule(), _variation(estimator, weight=BALANCED))
        loss.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-4, atol=1e-4)
    assert relative(flat(parameter.grad for parameter in network.parameters()), expected) <= 1e-2


@pytest.mark.parametrize("estimator", DIFFERENCES)
def test_fused_attention_alone_serves(estimator: str) -> None:
    network = adapted(unet((16, 32), layers=1))
    _assert_gradient_of_double_backward(network, estimator, sdpa_kernel(SDPBackend.FLASH_ATTENTION))


@pytest.mark.parametrize("estimator", [*DIFFERENCES, "double_backward"])
def test_gradient_checkpointing(estimator: str) -> None:
    network = adapted(unet((16, 32), layers=1)).train()
    draws = Draws.make(2, size=8)
    plain = _regularizer_gradient(network, draws, estimator)
    network.enable_gradient_checkpointing()
    # What is computed again must be what was computed: double backward's kernel has to be chosen around both.
    with sdpa_kernel(SDPBackend.MATH) if estimator == "double_backward" else nullcontext():
        assert relative(_regularizer_gradient(network, draws, estimator), plain) <= 1e-4


@pytest.mark.parametrize("estimator", DIFFERENCES)
def test_full_fine_tuning(estimator: str) -> None:
    network = unet((16, 32), layers=1)
    _assert_gradient_of_double_backward(network, estimator, nullcontext())


class Attention(nn.Module):
    """Small enough to compile in a second; the graph is what differs under torch.compile, not its size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(4, 3 * 8), nn.Linear(8, 4)

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        tokens = noisy.flatten(2).transpose(1, 2)
        query, key, value = self.into(tokens)[:, None].chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value)[:, 0]
        return tokens.add(self.out(mixed)).transpose(1, 2).reshape(noisy.shape)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's, of its own access
def test_a_compiled_network() -> None:
    torch.compiler.reset()
    plain = Attention()
    compiled = torch.compile(plain, backend="aot_eager")  # needs no C++ compiler
    draws = Draws.make(2, size=8)
    loss_of(plain, draws, schedule(), _variation("double_backward")).backward()
    expected = flat(parameter.grad for parameter in plain.parameters())
    for estimator in DIFFERENCES:
        plain.zero_grad()
        loss_of(compiled, draws, schedule(), _variation(estimator)).backward()
        assert relative(flat(parameter.grad for parameter in plain.parameters()), expected) <= 1e-2, estimator
    with pytest.raises(ValueError, match=r"without a second derivative.*central_difference"):
        loss_of(compiled, draws, schedule(), _variation("double_backward"))


def test_double_backward_says_once_that_it_leaves_the_fused_kernels(caplog: pytest.LogCaptureFixture) -> None:
    from smooth.diffusion import estimators

    estimators._say_plain_attention.cache_clear()
    network = caller(adapted(unet((16, 32), layers=1)))
    with caplog.at_level("WARNING", logger="smooth"):
        for _ in range(2):
            loss_of(network, Draws.make(1, size=8), schedule(), _variation("double_backward"))
    assert [record for record in caplog.messages if "without a fused kernel" in record] == [caplog.messages[0]]


@pytest.mark.parametrize("estimator", DIFFERENCES)
def test_the_quotient_tells_whether_the_step_suits(estimator: str) -> None:
    network = caller(adapted(unet((16, 32), layers=1)))
    draws = Draws.make(4, size=8)
    denoise = denoise_from(network, schedule(), draws.clean, draws.timesteps, draws.text)
    errors = {}
    for step in (None, 1e-7, 1.0):
        config = VariationConfig.model_validate({"estimator": estimator, "difference_step": step})
        estimate = choose_estimator(config, torch.float32)(denoise, draws.noise, draws.direction)
        torch.testing.assert_close(estimate.norms.detach(), norms_only(denoise, draws.noise, draws.direction))
        errors[step] = float(estimate.error.mean())
    assert errors[None] < 1e-2 < min(errors[1e-7], errors[1.0])


def test_an_unknown_dtype_asks_for_the_step() -> None:
    with pytest.raises(ValueError, match=r"no step was measured for torch.float8.*difference_step"):
        StepwiseVariation(VariationConfig(), dtype=torch.float8_e4m3fn)
    assert all(set(steps) == {torch.float32, torch.float16, torch.bfloat16} for steps in DIFFERENCE_STEPS.values())


@pytest.mark.parametrize("estimator", DIFFERENCES)
def test_a_network_that_does_not_move_has_no_norm_and_no_gradient(estimator: str) -> None:
    weight = torch.ones(1, requires_grad=True)

    def still(noise: Tensor) -> tuple[Tensor, Tensor]:
        return weight * noise, weight * noise * 0

    noise, direction = torch.randn(2, 2, 4, 4, 4)
    estimate = choose_estimator(VariationConfig.model_validate({"estimator": estimator}), torch.float32)(
        still, noise, direction
    )
    estimate.norms.sum().backward()
    assert estimate.norms.tolist() == [0, 0]
    assert weight.grad is not None
    assert float(weight.grad) == 0
