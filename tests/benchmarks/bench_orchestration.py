"""Training through the stage (Ray Train, DeepSpeed, read-ahead, MLflow) against a bare PyTorch loop of the same step.

``OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_orchestration``. One worker, one thread, the built-in base; both
sides skip their first steps, rounds alternate. Prefect only submits the stage: it has no part in a step.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import ray
import torch
from mlflow import MlflowClient
from torch import Tensor
from torch.nn import functional

from smooth.config import RunConfig
from smooth.data.dataset import LatentsDataset
from smooth.data.loader import LatentLoader
from smooth.diffusion.estimators import denoise_from
from smooth.diffusion.schedule import NoiseSchedule
from smooth.diffusion.variation import StepwiseVariation
from smooth.models.lora import add_lora
from smooth.models.pipeline import load_pipeline
from smooth.train import launch
from tests.benchmarks.results import Result, report
from tests.synthetic import shapes_of, write_latents

SKIPPED = 3  # first steps: allocations, the reading of the first window


def bare(config: RunConfig) -> float:
    """Samples/s (median of the steps) of the loop that one would write by hand."""
    train = config.train
    pipeline = load_pipeline(config.model.base)
    schedule = NoiseSchedule(pipeline.scheduler.alphas_cumprod, pipeline.scheduler.config.prediction_type)
    dataset = LatentsDataset(config.stage_dir("latents"))
    loader = LatentLoader(
        dataset,
        seed=config.seed,
        timesteps=schedule.steps,
        caption_dropout=0,
        global_batch_size=train.global_batch_size,
    )
    unet = pipeline.unet
    parameters = add_lora(unet, train.lora, config.seed)
    optimizer = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
    variation = StepwiseVariation(train.variation)

    def network(noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = unet(noisy, timesteps, encoder_hidden_states=text).sample
        return output

    speeds = []
    for step in range(train.steps):
        started = time.perf_counter()
        start = step * train.global_batch_size
        errors: list[Tensor] = []
        for batch in loader.micro_batches(start, train.micro_batch_size, 0, 1):
            denoise = denoise_from(network, schedule, batch.latents, batch.timesteps, batch.text)
            output, norms, _ = variation.estimator(denoise, batch.noise, batch.direction)
            if variation.targets is None:
                variation.start([float(norms.mean())])
            loss = functional.mse_loss(output, schedule.target(batch.latents, batch.noise, batch.timesteps))
            loss = loss + variation.weight * variation.penalty(norms, batch.timesteps).mean()
            torch.autograd.backward(loss / train.accumulation)
            errors.append(variation.errors(norms, batch.timesteps))
        torch.nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        variation.update(torch.cat(errors).mean(0).tolist())
        speeds.append(train.global_batch_size / (time.perf_counter() - started))
    dataset.close()
    return statistics.median(speeds[SKIPPED:])


def staged(config: RunConfig) -> float:
    """Samples/s of the train stage: median of the steps, each from log to log, so that nothing between is left out."""
    manifest = launch.run(config)
    points = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_metric_history(manifest["run_id"], "loss")
    logged = sorted((point.step, point.timestamp / 1000) for point in points if point.step >= SKIPPED)
    return config.train.global_batch_size / statistics.median(
        after - before for (_, before), (_, after) in itertools.pairwise(logged)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--preset", default="tiny")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {"bare": [], "stage": []}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root}/mlflow.db"
        ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.WARNING)
        for number in range(given.rounds):
            config = RunConfig.load(
                given.preset,
                [
                    f"storage.root={root}/artifacts",
                    f"seed={number}",
                    f"train.steps={given.steps}",
                    "train.workers=1",
                    "train.checkpoint_every=1000000",
                    "train.validate_every=1000000",
                    "train.istd_every=null",
                    "train.variation.target_knots=1",
                ],
            )
            latents = Path(config.stage_dir("latents"))
            if not latents.exists():
                write_latents(latents, rows=500, **shapes_of(config.model.base))
            rates["bare"].append(bare(config))
            rates["stage"].append(staged(config))
        ray.shutdown()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    share = statistics.median(one / other for one, other in zip(rates["stage"], rates["bare"], strict=True))
    results = [Result(name, rate, "samples/s") for name, rate in medians.items()]
    report("orchestration", [*results, Result("stage / bare", share, "x", ">= 0.95")])


if __name__ == "__main__":
    main()
