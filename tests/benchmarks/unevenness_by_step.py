"""Where in sampling a path of noises becomes uneven, with guidance and without.

For a preset's base and adapters on it: the evaluation's interpolations, and after each DDIM step the mean over prompts
of the variation coefficient of the distances between neighbouring latents; then that of the pictures, and their ISTD.
Needs finished latents (their captions are the prompts). Not a part of `make bench`; some minutes:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.unevenness_by_step --lora .smooth/artifacts/train/<fingerprint>
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smooth.config import RunConfig
from smooth.evaluate import frames, istd
from smooth.evaluate.protocol import Protocol
from smooth.models.pipeline import load_pipeline
from tests.benchmarks.results import Result, report


@contextmanager
def recorded(scheduler: Any) -> Iterator[list[torch.Tensor]]:
    """The latents before the first step and after each that ``scheduler`` takes meanwhile."""
    seen: list[torch.Tensor] = []
    step = scheduler.step

    def recording(output: torch.Tensor, timestep: int, latents: torch.Tensor, **options: Any) -> Any:
        result = step(output, timestep, latents, **options)
        seen.extend([result[0]] if seen else [latents, result[0]])
        return result

    scheduler.step = recording
    try:
        yield seen
    finally:
        scheduler.step = step


def uneven(pipeline: Any, protocol: Protocol) -> tuple[istd.FloatArray, istd.Smoothness]:
    """Mean variation coefficient of the latents before the first step and after each, and the pictures' smoothness."""
    coefficients, pictures = [], []
    for first in range(0, len(protocol.prompts) * protocol.frames, protocol.frames):
        with recorded(pipeline.scheduler) as latents:
            pictures.append(frames.paint(pipeline, protocol, range(first, first + protocol.frames)))
        distances = torch.stack(latents).diff(dim=1).flatten(2).norm(dim=2)
        coefficients.append(istd.variation_coefficient(distances.double().numpy()))
    return np.mean(coefficients, axis=0), istd.istd(np.stack(pictures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--lora", type=Path, action="append", default=[], help="folder of an adapter; may be repeated")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    given = parser.parse_args()
    config = RunConfig.load(given.preset)
    protocol = Protocol.of(config).first(given.prompts)
    results = []
    for lora in (None, *given.lora):
        pipeline: Any = load_pipeline(config.model.base, revision=config.model.revision, lora=lora)
        for scale in given.guidance:
            latents, pictures = uneven(pipeline, replace(protocol, guidance=scale))
            results.append(Result(f"{lora or 'base'}, guidance {scale:g}: ISTD", pictures.istd.value, ""))
            results.append(Result("  variation coefficient", pictures.variation_coefficient.value, ""))
            times = [*pipeline.scheduler.timesteps.tolist(), 0]
            results += [Result(f"  of latents at t = {t}", float(v), "") for t, v in zip(times, latents, strict=True)]
    report("unevenness-by-step", results)


if __name__ == "__main__":
    main()
