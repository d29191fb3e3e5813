"""The pictures of an evaluation: interpolation strips, curves of neighbour distances, ISTD by prompt."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smooth import store
from smooth.evaluate.reconstruction import WAYS, Reconstructed

# Okabe and Ito's palette: told apart with any colour vision, and in print by lightness.
COLOURS = {"base": "#D55E00", "smooth": "#0072B2"}


def draw_strips(path: str, prompts: Sequence[str], base: npt.NDArray[np.uint8], smooth: npt.NDArray[np.uint8]) -> None:
    """One pair of rows a prompt, base above smooth, from the first noise (left) to the second.

    Args:
        path: PNG on any fsspec path.
        prompts: at least S texts.
        base: (S, F, H, W, 3) uint8.
        smooth: the same shape, from the same noises.
    """
    strips, frames = base.shape[:2]
    figure = Figure(figsize=(1.9 + frames * 0.82, 0.35 + strips * 1.78), dpi=110, layout="constrained")
    axes = figure.subplots(2 * strips, 1, squeeze=False)[:, 0]
    for row in range(strips):
        for axis, name, pictures in ((axes[2 * row], "base", base), (axes[2 * row + 1], "smooth", smooth)):
            axis.imshow(np.concatenate(list(pictures[row]), axis=1), interpolation="nearest", aspect="equal")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            label = axis.set_ylabel(name, rotation=0, ha="right", va="center", color=COLOURS[name], fontsize=10)
            label.set_fontweight("bold")
        axes[2 * row].set_title(textwrap.shorten(prompts[row], 90), loc="left", fontsize=10)
    _save(figure, path)


def draw_reconstructions(path: str, found: Reconstructed) -> None:
    """Real pictures above what came back of them, at most ten.

    Args:
        path: PNG on any fsspec path.
        found: pictures of both models by each way; the VAE is the base's.
    """
    rows = [("real picture", "black", found.originals), (WAYS[0], "black", found.base[:, 0])]
    for way, name in enumerate(WAYS[1:], start=1):
        rows += [(f"{name}\n{model}", COLOURS[model], getattr(found, model)[:, way]) for model in COLOURS]
    count = min(10, len(found.originals))
    figure = Figure(figsize=(2.2 + count * 0.98, len(rows) * 1.02), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (name, colour, pictures) in zip(axes, rows, strict=True):
        axis.imshow(np.concatenate(list(pictures[:count]), axis=1), interpolation="nearest", aspect="equal")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", color=colour, fontsize=9)
    _save(figure, path, bbox_inches="tight", pad_inches=0.08)  # the rows keep their aspect and leave room beside


def draw_curves(path: str, base: npt.NDArray[np.float64], smooth: npt.NDArray[np.float64]) -> None:
    """Neighbour distance along the interpolation: mean and one deviation over prompts, each prompt as a faint line.

    Args:
        path: PNG on any fsspec path.
        base: (P, F - 1) distances on the [0, 1] pixel scale.
        smooth: the same shape.
    """
    figure = Figure(figsize=(9, 3.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axis, name, distances in ((left, "base", base), (right, "smooth", smooth)):
        _curve(axis, name, distances)
    left.set_ylabel("L2 distance to the next frame\n(pixels in [0, 1])")
    left.set_ylim(0, 1.05 * max(float(np.quantile(base, 0.995)), float(np.quantile(smooth, 0.995)), 1e-6))
    figure.suptitle("Steps of equal length in noise, and the steps they make in the picture: flatter is smoother")
    _save(figure, path)


def draw_histogram(path: str, base: npt.NDArray[np.float64], smooth: npt.NDArray[np.float64]) -> None:
    """How many prompts have which deviation of their neighbour distances, and its mean, ISTD.

    Args:
        path: PNG on any fsspec path.
        base: (P, F - 1) distances on the [0, 1] pixel scale.
        smooth: the same shape.
    """
    figure = Figure(figsize=(9, 2.9), dpi=110, layout="constrained")
    axis = figure.subplots()
    values = {"base": base.std(axis=1), "smooth": smooth.std(axis=1)}
    bins = np.linspace(0, max(float(value.max()) for value in values.values()) or 1.0, 25).tolist()
    for name, found in values.items():
        axis.hist(found, bins, color=COLOURS[name], alpha=0.35, label=name)
        axis.axvline(found.mean(), color=COLOURS[name], linewidth=2.2, label=f"ISTD {found.mean():.3f}")
    axis.set_xlabel("standard deviation of a prompt's neighbour distances")
    axis.set_ylabel("prompts")
    axis.set_xlim(0)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    _save(figure, path)


def _curve(axis: Axes, name: str, distances: npt.NDArray[np.float64]) -> None:
    steps = distances.shape[1]
    ratio = (np.arange(steps) + 0.5) / steps
    mean, spread = distances.mean(axis=0), distances.std(axis=0)
    colour = COLOURS[name]
    axis.plot(ratio, distances.T, color=colour, linewidth=0.6, alpha=0.25)
    axis.fill_between(ratio, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
    axis.plot(ratio, mean, color=colour, linewidth=2.2, marker="o", markersize=4)
    axis.set_title(f"{name}: ISTD {distances.std(axis=1).mean():.3f}, {len(distances)} prompts", color=colour)
    axis.set_xlabel("slerp ratio between the two noises")
    axis.grid(alpha=0.25)
    axis.set_xlim(0, 1)


def _save(figure: Figure, path: str, **options: Any) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **options)
    store.write_bytes(path, buffer.getvalue())
