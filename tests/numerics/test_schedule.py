"""The noise schedule against diffusers' own schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from smooth.diffusion.schedule import NoiseSchedule


def _schedulers(prediction_type: str) -> tuple[DDPMScheduler, NoiseSchedule]:
    reference = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
    )
    return reference, NoiseSchedule(reference.alphas_cumprod, reference.config.prediction_type)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noisy_latent_and_predicted_clean_match_diffusers(prediction_type: str) -> None:
    reference, schedule = _schedulers(prediction_type)
    torch.manual_seed(0)
    clean, noise, output = torch.randn(3, 4, 4, 8, 8).unbind()
    timesteps = torch.tensor([0, 250, 731, 999])
    noisy = schedule.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(noisy, reference.add_noise(clean, noise, timesteps))
    predicted = schedule.predicted_clean(output, noisy, timesteps)
    ddim = DDIMScheduler.from_config(reference.config)
    ddim.set_timesteps(1000)
    for row, timestep in enumerate(timesteps):
        expected = ddim.step(output[row], timestep, noisy[row]).pred_original_sample
        torch.testing.assert_close(predicted[row], expected, rtol=1e-4, atol=1e-4)


def test_v_target_matches_diffusers_velocity() -> None:
    reference, schedule = _schedulers("v_prediction")
    clean, noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind()
    timesteps = torch.tensor([1, 10, 500, 998])
    expected = reference.get_velocity(clean, noise, timesteps)
    torch.testing.assert_close(schedule.target(clean, noise, timesteps), expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_network_predicts_the_clean_latent(prediction_type: str) -> None:
    _, schedule = _schedulers(prediction_type)
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(2)).unbind()
    timesteps = torch.tensor([3, 600])
    noisy = schedule.add_noise(clean, noise, timesteps)
    target = schedule.target(clean, noise, timesteps)
    torch.testing.assert_close(schedule.predicted_clean(target, noisy, timesteps), clean, rtol=1e-4, atol=1e-4)


def test_unsupported_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        NoiseSchedule(torch.tensor([0.9, 0.5]), "sample")
    with pytest.raises(ValueError, match="zero terminal SNR"):
        NoiseSchedule(torch.tensor([0.9, 0.0]), "epsilon")
