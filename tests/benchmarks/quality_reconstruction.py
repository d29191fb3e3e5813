"""Do real pictures come back better with a Smooth LoRA? The paper's table 2, on drawings unseen by all trainings.

They are OpenMoji's that the built-in base was not trained on, less those among the captions that the LoRA was trained
on; each in one style, with its caption as the prompt. Base and LoRA invert and paint the same pictures. Prints a
Markdown table with paired intervals over the pictures, and writes ``.smooth/bench/quality-reconstruction.json`` and
a picture. Not a part of `make bench`:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.quality_reconstruction --lora .smooth/artifacts/train/<fingerprint>
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.progress import track

from smooth.config import RunConfig
from smooth.data.openmoji import Drawing, Style, drawings, render
from smooth.diffusion.inversion import Walk, ddim_inversion, null_text_inversion, reconstruct
from smooth.evaluate.istd import bootstrap
from smooth.evaluate.protocol import captions_of
from smooth.evaluate.real import Captioned
from smooth.evaluate.reconstruction import DDIM, MSE, NULL_TEXT, PSNR, SSIM, VAE, measure
from smooth.models import trained
from smooth.models.pipeline import decode_latents, encode_pictures, load_pipeline
from tests.benchmarks.results import Result, report

WAYS = (VAE, DDIM, NULL_TEXT)
STYLE = 100  # of the drawings: no training here goes so far
SIZE = 64
Painted = dict[str, npt.NDArray[np.uint8]]  # way => (R, H, W, 3)


def held_out(count: int, seen: set[str]) -> Captioned:
    """``count`` drawings that neither the base nor the fine-tune was trained on.

    Raises:
        ValueError: there are fewer.
    """
    unseen = [drawing for drawing in drawings() if drawing.held_out and drawing.caption not in seen]
    if len(unseen) < count:
        raise ValueError(f"--pictures {count}: only {len(unseen)} drawings are held out of both trainings")
    chosen = unseen[:: len(unseen) // count][:count]
    return Captioned(np.stack([picture(drawing) for drawing in chosen]), tuple(each.caption for each in chosen))


def picture(drawing: Drawing) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8."""
    return render(drawing, SIZE, Style.draw(drawing.key, STYLE))


def paint(pipeline: Any, real: Captioned, given: argparse.Namespace) -> Painted:
    """Every picture by each way; null-text inversion at ``--guidance``, DDIM inversion at that and at 1."""
    parts = list(track(painted(pipeline, real, given), "inverting", -(-len(real.captions) // given.batch)))
    return {way: np.concatenate([part[way] for part in parts]) for way in parts[0]}


def painted(pipeline: Any, real: Captioned, given: argparse.Namespace) -> Iterator[Painted]:
    walk = Walk(pipeline, given.steps)
    for start in range(0, len(real.captions), given.batch):
        chosen = slice(start, start + given.batch)
        latents = encode_pictures(pipeline, real.pictures[chosen])
        with torch.no_grad():
            text, null = pipeline.encode_prompt(list(real.captions[chosen]), pipeline.device, 1, True)
        inverted = ddim_inversion(walk, latents, text)
        plain = [null] * given.steps
        fitted = null_text_inversion(
            walk, inverted, text, null, guidance=given.guidance, inner_steps=given.null_text_steps
        )
        found = {
            VAE: latents,
            f"{DDIM}, guidance 1": reconstruct(walk, inverted[-1], text, plain, 1.0),
            f"{DDIM}, guidance {given.guidance:g}": reconstruct(walk, inverted[-1], text, plain, given.guidance),
            f"{NULL_TEXT}, guidance {given.guidance:g}": reconstruct(
                walk, inverted[-1], text, fitted.embeddings, given.guidance
            ),
        }
        yield {way: decode_latents(pipeline, each) for way, each in found.items()}


def table(originals: npt.NDArray[np.uint8], base: Painted, smooth: Painted) -> tuple[str, list[Result]]:
    """The paper's table 2, with the paired difference under each pair of rows."""
    lines = [f"| | {MSE} ↓ | {SSIM} ↑ | {PSNR} ↑ |", "|---|---|---|---|"]
    results: list[Result] = []
    for way in base:
        values = {name: measure(originals, each[way]) for name, each in (("base", base), ("smooth", smooth))}
        values["smooth − base"] = {key: values["smooth"][key] - values["base"][key] for key in values["base"]}
        for name in ["base"] if way == VAE else values:
            cells = [shown(key, values[name][key], interval=name == "smooth − base") for key in (MSE, SSIM, PSNR)]
            lines.append(f"| {way if way == VAE else f'{name}, {way}'} | {' | '.join(cells)} |")
            results += [Result(f"{way}, {name}: {key}", float(values[name][key].mean()), "") for key in (MSE, PSNR)]
    return "\n".join(lines), results


def shown(key: str, values: npt.NDArray[np.float64], *, interval: bool) -> str:
    style: Callable[[float], str] = (lambda value: f"{value:.2f}") if key == PSNR else (lambda value: f"{value:.5f}")
    if not interval:
        return style(values.mean())
    found = bootstrap(values, 0)
    return f"{style(found.value)} [{style(found.low)}, {style(found.high)}]"


def draw(path: Path, originals: npt.NDArray[np.uint8], base: Painted, smooth: Painted, columns: int = 12) -> None:
    """The first originals, and what came back of them below: each way by the base, then by the LoRA."""
    ways = [way for way in base if way != VAE]
    rows = [originals, *(each[way] for way in ways for each in (base, smooth))]
    sheet = np.concatenate([np.concatenate(list(row[:columns]), axis=1) for row in rows])
    Image.fromarray(sheet).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", required=True, help="folder of what was trained")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--null-text-steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--picture", type=Path, help="where to draw what came back")
    given = parser.parse_args()
    real = held_out(given.pictures, set(captions_of(RunConfig.load("tiny").stage_dir("latents"))))
    pipeline = load_pipeline("builtin:tiny")
    switch = trained.attach(pipeline, given.lora)
    switch(False)
    base = paint(pipeline, real, given)
    switch(True)
    smooth = paint(pipeline, real, given)
    text, results = table(real.pictures, base, smooth)
    print(text)
    report("quality-reconstruction", results)
    if given.picture is not None:
        draw(given.picture, real.pictures, base, smooth)


if __name__ == "__main__":
    main()
