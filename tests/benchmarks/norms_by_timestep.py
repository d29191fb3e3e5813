"""How the regularizer's norm depends on the timestep, and what of ``(n - a)^2`` one target for all of them asks for.

On a preset's base and its finished latents: mean and standard deviation of ``n`` (paper eq. 10) at timesteps over the
whole schedule, and the share of the variance that lies between timesteps. Not a part of `make bench`:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.norms_by_timestep
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from smooth.config import RunConfig
from smooth.data.dataset import LatentsDataset
from smooth.data.loader import LatentLoader
from smooth.diffusion.estimators import denoise_from, norms_only
from smooth.diffusion.schedule import NoiseSchedule
from smooth.models.pipeline import load_pipeline
from smooth.train.text import embedder
from tests.benchmarks.results import Result, report


def norms(config: RunConfig, places: int, samples: int) -> dict[int, Tensor]:
    """``n`` of ``samples`` samples at so many timesteps, all with the same pictures, noises and directions."""
    pipeline = load_pipeline(config.model.base, revision=config.model.revision)
    schedule = NoiseSchedule(pipeline.scheduler.alphas_cumprod, pipeline.scheduler.config.prediction_type)
    dataset = LatentsDataset(config.stage_dir("latents"))
    loader = LatentLoader(
        dataset, seed=config.seed, timesteps=schedule.steps, caption_dropout=0.0, global_batch_size=samples
    )
    batch = loader.batch(range(samples))
    text = embedder(dataset, pipeline.text_encoder, torch.device("cpu"))(batch.text)
    dataset.close()

    def network(noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = pipeline.unet(noisy, timesteps, encoder_hidden_states=text).sample
        return output

    found = {}
    for timestep in torch.linspace(0, schedule.steps - 1, places).long().tolist():
        timesteps = torch.full((samples,), timestep)
        denoise = denoise_from(network, schedule, batch.latents, timesteps, text)
        found[timestep] = norms_only(denoise, batch.noise, batch.direction)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--places", type=int, default=21)
    parser.add_argument("--samples", type=int, default=64)
    given = parser.parse_args()
    found = norms(RunConfig.load(given.preset), given.places, given.samples)
    results = []
    for timestep, values in found.items():
        spread = float(values.std() / values.mean())
        results += [
            Result(f"t = {timestep}: mean norm", float(values.mean()), ""),
            Result("  spread of it", spread, ""),
        ]
    every = torch.stack(list(found.values()))
    between = float(every.mean(1).var(correction=0) / every.var(correction=0))
    report("norms-by-timestep", [*results, Result("variance between timesteps", between, "of the whole")])


if __name__ == "__main__":
    main()
