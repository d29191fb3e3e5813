"""Does a Smooth LoRA keep what an edit should not touch? Emoji that differ in skin tone or colour, base against LoRA.

Prints a Markdown table, and writes ``.smooth/bench/quality-edit*.json`` and a grid of pictures. Settings are to be
chosen on some pairs (``--first 0 --pairs 20``) and confirmed on others (``--first 20 --pairs 50``). Some minutes for
50 pairs on 2 cores, and several times that by null-text inversion. Not a part of `make bench`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from smooth.data.pairs import Pair, pairs
from smooth.edit import media
from smooth.edit.edit import RATIOS, STRENGTHS, edit, sdedit
from smooth.edit.generate import image_size
from smooth.edit.invert import invert
from smooth.edit.model import EditModel, open_model
from smooth.evaluate.diversity import Interval
from smooth.evaluate.editing import Edits, matched_difference, measure, paired_difference
from smooth.evaluate.istd import bootstrap
from tests.benchmarks.results import Result, folder, report

BATCH = 10
SHOWN = 8  # pairs of the grid
Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Asked:
    """The pairs that both models edit."""

    given: argparse.Namespace
    chosen: tuple[Pair, ...]
    sources: Pictures
    targets: Pictures


@dataclass(frozen=True)
class Arm:
    """What a model made of the pairs."""

    edited: Pictures
    """(R, B, H, W, 3)"""
    edits: Edits


def run(model: EditModel, strength: float, asked: Asked) -> Arm:
    """Edit all pairs by one model."""
    pipeline, given, chosen = model.at(strength), asked.given, asked.chosen
    parts = []
    for start in range(0, len(chosen), BATCH):
        block = chosen[start : start + BATCH]
        pictures, words = asked.sources[start : start + BATCH], [pair.target.caption for pair in block]
        settings = {"steps": given.steps, "guidance": given.guidance}
        if given.method == "sdedit":
            parts.append(sdedit(pipeline, pictures, words, strengths=given.settings, **settings))
        else:
            own = [pair.source.caption for pair in block]
            inner = given.null_text_steps if given.method == "null-text" else 0
            inverted = invert(pipeline, pictures, own, null_text_steps=inner, **settings)
            parts.append(edit(pipeline, inverted, words, ratios=given.settings))
        print(f"{start + len(block)} of {len(chosen)} pairs", flush=True)
    edited = np.concatenate(parts, axis=1)
    return Arm(edited, measure(asked.sources, asked.targets, edited))


def table(arms: dict[str, Arm], settings: list[float], name: str) -> str:
    """Rows of settings and models, with paired differences."""
    lines = [f"| {name} | | outside ↓ | strength | remaining ↓ |", "|---|---|---|---|---|"]
    base, smooth = arms["base"].edits, arms["smooth"].edits
    for index, setting in enumerate(settings):
        for model, arm in arms.items():
            columns = (arm.edits.outside, arm.edits.strength, arm.edits.remaining)
            cells = [text(bootstrap(column[index], 0)) for column in columns]
            lines.append(f"| {setting:g} | {model} | {' | '.join(cells)} |")
        cells = [
            text(paired_difference(getattr(smooth, column), getattr(base, column))[index])
            for column in ("outside", "strength", "remaining")
        ]
        lines.append(f"| {setting:g} | smooth − base | {' | '.join(cells)} |")
    matched = matched_difference(smooth, base)
    lines.append(f"| matched strength | smooth − base | {'none' if matched is None else text(matched)} | | |")
    return "\n".join(lines)


def text(found: Interval) -> str:
    mark = "**" if found.low > 0 or found.high < 0 else ""
    return f"{mark}{found.value:.4f}{mark} [{found.low:.4f}, {found.high:.4f}]"


def results(arms: dict[str, Arm], settings: list[float], name: str) -> list[Result]:
    """The same as figures."""
    base, smooth = arms["base"].edits, arms["smooth"].edits
    found = []
    for column in ("outside", "strength", "remaining"):
        of = {model: getattr(arm.edits, column) for model, arm in arms.items()}
        for index, setting in enumerate(settings):
            found += [
                Result(f"{column}, {name}={setting:g}: {model}", float(of[model][index].mean()), "") for model in arms
            ]
        for setting, difference in zip(settings, paired_difference(of["smooth"], of["base"]), strict=True):
            found += interval(f"{column}, {name}={setting:g}: smooth - base", difference)
    matched = matched_difference(smooth, base)
    return found + ([] if matched is None else interval("outside at matched strength: smooth - base", matched))


def interval(name: str, found: Interval) -> list[Result]:
    return [
        Result(name, found.value, ""),
        Result(f"{name}, lower end", found.low, ""),
        Result(f"{name}, upper end", found.high, ""),
    ]


def grid(arms: dict[str, Arm], drawn: tuple[Pictures, Pictures], settings: list[float], name: str) -> Pictures:
    """Sources, edits at each setting and targets of the first pairs, a model below the other."""
    sources, targets = (pictures[:SHOWN] for pictures in drawn)
    rows = {"source": media.strip(sources)}
    for model, arm in arms.items():
        rows |= {
            f"{model}, {name}={setting:g}": media.strip(arm.edited[index, :SHOWN])
            for index, setting in enumerate(settings)
        }
    return media.stacked(rows | {"target": media.strip(targets)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", required=True, help="folder with pytorch_lora_weights.safetensors")
    parser.add_argument("--method", choices=["ddim", "null-text", "sdedit"], default="ddim")
    parser.add_argument("--settings", type=float, nargs="+", help="values of r, or strengths of SDEdit")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--null-text-steps", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="pairs that are left out")
    parser.add_argument("--pairs", type=int, default=50)
    given = parser.parse_args()
    given.settings = given.settings or list(STRENGTHS if given.method == "sdedit" else RATIOS)
    name = "strength" if given.method == "sdedit" else "r"
    chosen = pairs()[given.first : given.first + given.pairs]
    model = open_model(given.lora, scratch=str(folder()), device="cpu")
    size = image_size(model.at())
    rendered = [pair.render(size) for pair in chosen]
    drawn = np.stack([source for source, _ in rendered]), np.stack([target for _, target in rendered])
    asked = Asked(given, chosen, *drawn)
    arms = {label: run(model, strength, asked) for label, strength in (("base", 0.0), ("smooth", 1.0))}
    print(f"{len(chosen)} pairs from {given.first}, {given.method}, {given.steps} steps, guidance {given.guidance:g}")
    print(table(arms, given.settings, name))
    label = f"quality-edit-{given.method}-{given.steps}-{given.guidance:g}-{given.first}"
    Image.fromarray(grid(arms, drawn, given.settings, name)).save(folder() / f"{label}.png")
    report(label, results(arms, given.settings, name))


if __name__ == "__main__":
    main()
