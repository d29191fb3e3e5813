"""Where in sampling a path of noises becomes uneven, with guidance and without.

For a preset's base and adapters on it: the evaluation's interpolations, and after each DDIM step the mean over prompts
of the variation coefficient of the distances between neighbouring latents; then that of the pictures, and their ISTD.
Draws ``--out``.
Needs finished latents (their captions are the prompts). Not a part of `make bench`; some minutes:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.unevenness_by_step --lora smooth=.smooth/artifacts/train/<fingerprint>
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
from matplotlib.figure import Figure

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


def named(text: str) -> tuple[str, Path]:
    """``NAME=FOLDER`` of an adapter."""
    name, separator, folder = text.partition("=")
    if not separator or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=FOLDER, a folder that holds the adapter")
    return name, Path(folder)


def draw(curves: dict[tuple[str, float], istd.FloatArray], timesteps: list[int], path: Path) -> None:
    """A colour for each model, a dash for each guidance scale; time runs to the right, as sampling does."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    names, scales = (list(dict.fromkeys(part)) for part in zip(*curves, strict=True))
    for (name, scale), curve in curves.items():
        dash = ("-", "--", ":", "-.")[scales.index(scale) % 4]
        axes.plot(timesteps, curve, dash, color=f"C{names.index(name)}", label=f"{name}, guidance {scale:g}")
    axes.invert_xaxis()
    axes.set(xlabel="timestep", ylabel="variation coefficient, latents")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument(
        "--lora", type=named, action="append", default=[], metavar="NAME=FOLDER", help="may be repeated"
    )
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--out", type=Path, default=Path(".github/images/unevenness-by-step.png"))
    given = parser.parse_args()
    config = RunConfig.load(given.preset)
    protocol = Protocol.of(config).first(given.prompts)
    results, curves, timesteps = [], {}, list[int]()
    for name, lora in [("base", None), *given.lora]:
        pipeline: Any = load_pipeline(config.model.base, revision=config.model.revision, lora=lora)
        for scale in given.guidance:
            curves[name, scale], pictures = uneven(pipeline, replace(protocol, guidance=scale))
            results += [
                Result(f"{name}, guidance {scale:g}: ISTD", pictures.istd.value, ""),
                Result("  variation coefficient", pictures.variation_coefficient.value, ""),
                Result("  the latents'", float(curves[name, scale][-1]), ""),
            ]
        timesteps = [*pipeline.scheduler.timesteps.tolist(), 0]
    draw(curves, timesteps, given.out)
    report("unevenness-by-step", results)


if __name__ == "__main__":
    main()
