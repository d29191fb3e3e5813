"""What the step of the perceptual path length may be: its mean by step, in float32 and in float64.

Too long a step is no derivative, and rounding is divided by the square of too short a one. On the built-in base, by
pixels. Not a part of `make bench`; a minute:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.path_length_step
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from smooth.diffusion import sampler
from smooth.evaluate.path_length import path_length, squared_pixels
from smooth.models.pipeline import load_pipeline
from tests.benchmarks.results import Result, report

EPSILONS = (1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
PROMPTS = ("red heart", "grinning face", "pizza", "waving hand", "yellow star", "dog face")
STEPS, GUIDANCE = 10, 3.0


def lengths(dtype: torch.dtype, epsilon: float, seed: int) -> npt.NDArray[np.float64]:
    """(N,) of a path for each prompt; the noises are float64 until the pipeline takes them."""
    pipeline = load_pipeline("builtin:tiny", dtype=dtype)
    shape = sampler.latent_shape(pipeline, int(pipeline.unet.config.sample_size * pipeline.vae_scale_factor))
    starts, ends = (
        torch.stack([sampler.noise(seed, end, index, shape) for index in range(len(PROMPTS))]).double()
        for end in ("start", "end")
    )

    def generate(paths: Sequence[int], noises: torch.Tensor) -> torch.Tensor:
        prompts = [PROMPTS[path] for path in paths]
        pictures = sampler.sample_unrounded(pipeline, prompts, noises, steps=STEPS, guidance=GUIDANCE)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    return path_length(generate, squared_pixels, starts, ends, seed=seed, epsilon=epsilon).per_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    results = []
    for epsilon in EPSILONS:
        rounded, exact = (lengths(dtype, epsilon, seed) for dtype in (torch.float32, torch.float64))
        results += [
            Result(f"epsilon = {epsilon:g}: mean in float32", float(rounded.mean()), ""),
            Result("  in float64", float(exact.mean()), ""),
            Result("  a path's difference, at most", float(np.abs(rounded / exact - 1).max()), "of its length"),
        ]
    report("path-length-step", results)


if __name__ == "__main__":
    main()
