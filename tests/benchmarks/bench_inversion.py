"""How the error of a DDIM inversion's round trip falls with the steps, on held-out real pictures without guidance.

A step of the inversion takes the network's answer at the nearer latent for that at the farther one, so the whole walk's
error should fall as 1 / steps. ``--model``, for example a LoRA, is drawn beside its base. Draws ``--out``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from smooth.data import openmoji
from smooth.data.openmoji import Style
from smooth.diffusion import sampler
from smooth.diffusion.inversion import Walk, ddim_inversion, reconstruct
from smooth.edit.generate import image_size
from smooth.edit.model import open_model
from smooth.models.pipeline import encode_pictures
from tests.benchmarks.results import Result, report

STEPS = (10, 20, 40, 80, 160)
SLOPE = 0.3  # the most that a slope may miss -1 by


def errors(pipeline: Any, count: int) -> np.ndarray:
    """(len(STEPS), count) RMS in latents of pictures that the base has never seen."""
    chosen = [drawing for drawing in openmoji.drawings() if drawing.held_out][:: 200 // count][:count]
    size = image_size(pipeline)
    pictures = np.stack([openmoji.render(each, size, Style.draw(each.key, 0)) for each in chosen])
    clean = encode_pictures(pipeline, pictures)
    told = sampler.embed(pipeline, [each.short_caption for each in chosen])
    text, null = told["prompt_embeds"], told["negative_prompt_embeds"]
    found = []
    for steps in STEPS:
        walk = Walk(pipeline, steps)
        back = reconstruct(walk, ddim_inversion(walk, clean, text)[-1], text, [null] * steps, 1.0)
        found.append((back - clean).square().flatten(1).mean(1).sqrt().cpu().numpy())
        print(f"{steps} steps: RMS {found[-1].mean():.4f}", flush=True)
    return np.stack(found)


def slopes(found: np.ndarray) -> np.ndarray:
    """(count,) of each picture's error over the steps, both logarithmic."""
    slope: np.ndarray = np.polyfit(np.log(STEPS), np.log(found), 1)[0]
    return slope


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    """Mean and range over the pictures, on two logarithmic axes, with the line of 1 / steps."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for (label, found), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=False):
        axes.loglog(STEPS, found.mean(1), "o-", color=colour, label=f"{label}, slope {slopes(found).mean():.2f}")
        axes.fill_between(STEPS, found.min(1), found.max(1), color=colour, alpha=0.15, linewidth=0)
    first = next(iter(curves.values())).mean(1)[0]
    axes.loglog(STEPS, [first * STEPS[0] / steps for steps in STEPS], "k:", linewidth=1, label="1 / steps")
    axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
    axes.minorticks_off()
    axes.set_xlabel("DDIM steps, there and back")
    axes.set_ylabel("error of the round trip, RMS in latents")
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny", help="as `smooth generate` takes it")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(".github/images/inversion-error.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = open_model(arguments.model, scratch=scratch)
        labels = {"base": 0.0, "smooth": 1.0} if model.has_base else {"base": 1.0}
        curves = {label: errors(model.at(strength), arguments.pictures) for label, strength in labels.items()}
    draw(curves, arguments.out)
    results = []
    for label, found in curves.items():
        slope = float(slopes(found).mean())
        results.append(Result(f"{label}: distance of the slope from -1", abs(slope + 1), "", f"<= {SLOPE}"))
        results += [
            Result(f"{label}: RMS at {steps} steps", float(row.mean()), "")
            for steps, row in zip(STEPS, found, strict=True)
        ]
    report("inversion", results)


if __name__ == "__main__":
    main()
