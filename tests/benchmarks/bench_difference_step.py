"""How the error of the first-order estimators depends on the step: the curve that `DIFFERENCE_STEPS` is read off.

On the built-in UNet with a random LoRA: relative error and cosine of the regularizer's gradient against exact
double backward in float32, for each dtype (autocast) and step. Draws ``.smooth/bench/difference-step.png``.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from matplotlib.figure import Figure
from torch import Tensor

from smooth.config import VariationConfig, resolve_model
from smooth.diffusion.estimators import DIFFERENCE_STEPS, denoise_from
from smooth.diffusion.variation import StepwiseVariation
from tests.benchmarks.results import Result, folder, report
from tests.numerics.networks import Draws, adapted, caller, flat, relative, schedule

Estimator = Literal["one_sided_difference", "central_difference", "double_backward"]
STEPS = {
    torch.float32: (1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    torch.float16: (3e-3, 1e-2, 3e-2, 1e-1),
    torch.bfloat16: (2e-2, 5e-2, 1e-1, 2e-1),
}
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
COLOURS = {torch.float32: "tab:blue", torch.float16: "tab:green", torch.bfloat16: "tab:orange"}
# The least cosine at the chosen step that the tests hold the estimators to.
LEAST_COSINE = {torch.float32: 0.9999, torch.float16: 0.99, torch.bfloat16: 0.98}


def gradient(
    network: UNet2DConditionModel, draws: Draws, dtype: torch.dtype, estimator: Estimator, step: float | None
) -> Tensor:
    """Gradient of the mean penalty by the adapter."""
    variation = StepwiseVariation(VariationConfig(estimator=estimator, difference_step=step), dtype=dtype)
    variation.start([0.2])
    denoise = denoise_from(caller(network), schedule(), draws.clean, draws.timesteps, draws.text)
    with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
        norms = variation.estimator(denoise, draws.noise, draws.direction).norms
        penalty = variation.penalty(norms, draws.timesteps).mean()
    return flat(torch.autograd.grad(penalty, [weight for weight in network.parameters() if weight.requires_grad]))


def draw(curves: dict[tuple[torch.dtype, Estimator], dict[float, float]], exact: dict[torch.dtype, float]) -> None:
    """Relative error over the step, on two logarithmic axes; a ring marks the step that is used."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (dtype, estimator), curve in curves.items():
        style = "-" if estimator == "central_difference" else "--"
        label = f"{NAMES[dtype]}, {estimator.replace('_', ' ')}"
        axes.loglog(list(curve), list(curve.values()), style, color=COLOURS[dtype], marker=".", label=label)
        used = DIFFERENCE_STEPS[estimator][dtype]
        axes.plot(used, curve[used], "o", markersize=11, markerfacecolor="none", color=COLOURS[dtype])
    for dtype, error in exact.items():
        axes.axhline(error, color=COLOURS[dtype], linewidth=0.7, linestyle=":")
        axes.text(axes.get_xlim()[1], error, f"{NAMES[dtype]}, double backward ", fontsize=7, va="bottom", ha="right")
    axes.set_xlabel("step h, RMS in the noise")
    axes.set_ylabel("relative error of the gradient")
    axes.legend(fontsize=7)
    figure.savefig(folder() / "difference-step.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8)
    samples = parser.parse_args().samples
    folder_of_unet = resolve_model("builtin:tiny")
    network = adapted(UNet2DConditionModel.from_pretrained(folder_of_unet, subfolder="unet", torch_dtype=torch.float32))
    draws = Draws.make(samples, text_width=network.config.cross_attention_dim)
    reference = gradient(network, draws, torch.float32, "double_backward", None)
    curves: dict[tuple[torch.dtype, Estimator], dict[float, float]] = {}
    exact: dict[torch.dtype, float] = {}
    results = []
    estimators: tuple[Estimator, ...] = ("central_difference", "one_sided_difference")
    for dtype, steps in STEPS.items():
        if dtype != torch.float32:
            exact[dtype] = relative(gradient(network, draws, dtype, "double_backward", None), reference)
        for estimator in estimators:
            curve = curves[dtype, estimator] = {}
            for step in steps:
                value = gradient(network, draws, dtype, estimator, step)
                curve[step] = relative(value, reference)
                cosine = float(torch.cosine_similarity(value, reference, dim=0))
                print(
                    f"{NAMES[dtype]} {estimator} h = {step:g}: error {curve[step]:.1e}, cosine {cosine:.6f}", flush=True
                )
                if step == DIFFERENCE_STEPS[estimator][dtype]:
                    name = f"{NAMES[dtype]}, {estimator}, h = {step:g}"
                    results.append(Result(f"{name}: cosine", cosine, "", f">= {LEAST_COSINE[dtype]}"))
                    results.append(Result(f"{name}: error", curve[step], "relative"))
    draw(curves, exact)
    report("difference-step", results)


if __name__ == "__main__":
    main()
