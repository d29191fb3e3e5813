"""The regularizer against independent references: a closed form, finite differences."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from smooth.config import VariationConfig
from smooth.diffusion.estimators import denoise_from, double_backward
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation, global_mean

TIMESTEPS = torch.tensor([20, 400, 900])
SHAPE = (3, 2, 4, 4)


def _schedule(prediction_type: str) -> NoiseSchedule:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return NoiseSchedule(scheduler.alphas_cumprod, prediction_type)


class LinearNetwork(nn.Module):
    """output = M x_t, sample by sample, with the latent flattened: every Jacobian is known."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        size = SHAPE[1] * SHAPE[2] * SHAPE[3]
        self.matrix = nn.Parameter(torch.randn(size, size, dtype=dtype, generator=torch.Generator().manual_seed(5)))

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        return (noisy.to(self.matrix.dtype).flatten(1) @ self.matrix.T).reshape(noisy.shape)


def _random(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    draws = torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return draws.unbind()


def _closed_form(matrix: Tensor, direction: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Norms (B,) of eq. 10 for the linear network, written out by hand.

    x_t = s x0 + q eps with s = sqrt(abar), q = sqrt(1 - abar). Epsilon: x0_hat = (x_t - q M x_t) / s, so
    J = (q/s) (I - q M). v: x0_hat = s x_t - q M x_t, so J = q (s I - q M). The norm is q |J^T delta|.
    """
    abar = schedule.alphas_cumprod[TIMESTEPS].double()
    signal, sigma = abar.sqrt(), (1 - abar).sqrt()
    identity = torch.eye(len(matrix), dtype=torch.float64)
    norms = []
    for s, q, delta in zip(signal, sigma, direction.flatten(1), strict=True):
        if schedule.prediction_type == "epsilon":
            jacobian = (q / s) * (identity - q * matrix)
        else:
            jacobian = q * (s * identity - q * matrix)
        norms.append(q * (jacobian.T @ delta).norm())
    return torch.stack(norms)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("estimator", ["one_sided_difference", "central_difference", "double_backward"])
def test_norm_and_weight_gradient_equal_the_closed_form(prediction_type: str, estimator: str) -> None:
    schedule, network = _schedule(prediction_type), LinearNetwork()
    clean, noise, direction = _random(3)
    denoise = denoise_from(network, schedule, clean, TIMESTEPS, torch.empty(0))
    variation = StepwiseVariation(VariationConfig.model_validate({"estimator": estimator}))
    output, norms, _ = variation.estimator(denoise, noise, direction)
    variation.start([1.7])
    variation.penalty(norms, TIMESTEPS).mean().backward()

    matrix = network.matrix.detach().clone().requires_grad_()
    expected = _closed_form(matrix, direction, schedule)
    (expected - 1.7).square().mean().backward()
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network.matrix.grad, matrix.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output, network(schedule.add_noise(clean, noise, TIMESTEPS), TIMESTEPS, clean))


def _small_unet() -> UNet2DConditionModel:
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return unet.double()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_gradient_of_the_penalty_equals_finite_differences_on_a_unet(prediction_type: str) -> None:
    schedule, unet = _schedule(prediction_type), _small_unet()
    clean, noise, direction = _random(3, seed=7)
    text = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    variation = StepwiseVariation(VariationConfig())
    variation.start([0.3])

    def network(noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        return unet(noisy, timesteps, encoder_hidden_states=text).sample

    def penalty() -> Tensor:
        # The norms are float32 in production; here the differences need float64.
        denoise = denoise_from(network, schedule, clean, TIMESTEPS, text)
        probe = noise.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((denoise(probe)[1] * direction).sum(), probe)
        return variation.penalty(gradient.flatten(1).norm(dim=1), TIMESTEPS).mean()

    denoise = denoise_from(network, schedule, clean, TIMESTEPS, text)
    variation.penalty(double_backward(denoise, noise, direction).norms, TIMESTEPS).mean().backward()
    generator = torch.Generator().manual_seed(9)
    for name in ("conv_in.weight", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight", "conv_out.bias"):
        parameter = unet.get_parameter(name)
        along = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        start = parameter.detach().clone()
        values = []
        for step in (1e-5, -1e-5):
            parameter.data.copy_(start + step * along)
            values.append(float(penalty()))
        parameter.data.copy_(start)
        numeric = (values[0] - values[1]) / 2e-5
        exact = 0.0 if parameter.grad is None else float((parameter.grad * along).sum())
        assert exact == pytest.approx(numeric, rel=1e-4, abs=1e-9), name


def test_target_starts_at_the_first_mean_then_decays_and_survives_a_checkpoint() -> None:
    variation, timesteps = StepwiseVariation(VariationConfig(target_decay=0.01)), torch.tensor([5, 900])
    with pytest.raises(ValueError, match="no value yet"):
        variation.penalty(torch.ones(2), timesteps)
    with pytest.raises(ValueError, match="finite norm for each of its knots"):
        variation.start([float("nan")])
    variation.start([2.0])
    variation.update(global_mean(variation.errors(torch.tensor([2.5, 3.5]), timesteps)))
    variation.update([float("nan")])
    assert variation.targets == pytest.approx([2.01])
    restored = StepwiseVariation(VariationConfig(target_decay=0.01))
    restored.load_state_dict(variation.state_dict())
    assert restored.state_dict() == {"targets": variation.targets, "count": 2}
    torch.testing.assert_close(restored.penalty(torch.tensor([3.01]), timesteps[:1]), torch.tensor([1.0]))


def test_a_target_of_several_knots_is_interpolated_and_follows_each_timestep() -> None:
    """Norms that grow with the timestep: numpy's interpolation is the reference, and no penalty is left of them."""
    timesteps = torch.arange(1000)
    variation = StepwiseVariation(VariationConfig(target_decay=0.01, target_knots=21))
    places = variation.places(timesteps[:4])
    assert [int(place[0]) for place in places] == [round(999 * knot / 20) for knot in range(21)]
    variation.start([1.0 + knot % 3 for knot in range(21)])
    expected = np.interp(np.arange(1000), np.linspace(0, 999, 21), variation.targets or [])
    torch.testing.assert_close(variation.target(timesteps), torch.tensor(expected, dtype=torch.float32))

    norms = 0.2 + 3 * (timesteps / 999) ** 2
    draw = torch.Generator().manual_seed(0)
    for _ in range(3000):
        batch = torch.randint(1000, (16,), generator=draw)
        variation.update(global_mean(variation.errors(norms[batch], batch)))
    assert float(variation.penalty(norms, timesteps).mean()) < 1e-4
    paper = StepwiseVariation(VariationConfig())
    paper.start([float(norms.mean())])
    assert float(paper.penalty(norms, timesteps).mean()) == pytest.approx(float(norms.var()), rel=1e-2)
