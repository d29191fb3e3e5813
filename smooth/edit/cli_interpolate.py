"""The command `smooth interpolate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smooth.edit import GUIDANCE, STEPS
from smooth.edit.options import (
    BUILTIN,
    BaseOption,
    CompareOption,
    GuidanceOption,
    ModelOption,
    NegativeOption,
    NullTextOption,
    StepsOption,
    StrengthOption,
    bar,
    cache_of,
    check_name,
    digests,
    levels,
    open_quietly,
    read_pictures,
    save,
    two,
)

if TYPE_CHECKING:
    from smooth.edit.interpolate import Frames, Way
    from smooth.edit.model import EditModel

FILMS = (".gif", ".mp4")
SEEDS = [0, 1]


def interpolate(
    context: typer.Context,
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help="Of the first and of the last frame, or of both.")
    ],
    seed: Annotated[list[int], typer.Option("--seed", help="Of the first and the last noise; one is both's.")] = SEEDS,
    picture: Annotated[
        list[str] | None, typer.Option("--picture", help="Two: between real pictures, which the prompts tell.")
    ] = None,
    method: Annotated[
        Literal["noise", "vae", "anid"],
        typer.Option("--method", help="Of real pictures: noise (inverted), or a baseline."),
    ] = "noise",
    frames: Annotated[int, typer.Option("--frames", help="Both ends included.")] = 11,
    equal_steps: Annotated[
        bool, typer.Option("--equal-steps", help="Each frame as far from the next; paints up to five times.")
    ] = False,
    out: Annotated[str, typer.Option("--out", help="A .png (a strip), .gif or .mp4.")] = "strip.png",
    null_text_steps: NullTextOption = 10,
    negative: NegativeOption = "",
    model: ModelOption = BUILTIN,
    base: BaseOption = BUILTIN,
    strength: StrengthOption = 1.0,
    compare: CompareOption = False,
    steps: StepsOption = STEPS,
    guidance: GuidanceOption = GUIDANCE,
) -> None:
    """Go from one picture to another: between seeds, prompts, or two real pictures.

    For example:

        smooth interpolate "red heart" --seed 1 --seed 2 --frames 5 --steps 5

        smooth interpolate "red heart" "red apple" --frames 5 --steps 5 --out a.gif
    """
    from smooth.cli import reported

    with reported():
        check_name(out, ".png", *FILMS)
        _check_used(picture, method, negative, seed)
        pair, seeds = two("prompts", prompts), two("--seed", seed)
        edited = open_quietly(model, base)
        found: dict[str, Frames] = {}
        for label, level in levels(edited, strength, compare).items():
            if picture:
                ends = two("--picture", picture, least=2)
                way = _between_pictures(
                    edited, level, label, method, ends, pair, seeds[0], null_text_steps, steps, guidance
                )
            else:
                from smooth.edit.interpolate import generated

                way = generated(edited.at(level), pair, seeds, negative=negative, steps=steps, guidance=guidance)
            found[label] = _painted(label, way, frames, equal_steps)
        if out.endswith(FILMS):
            _write_film(out, found, compare)
        else:
            _save_strip(context, edited, out, found, compare)


def _check_used(pictures: list[str] | None, method: str, negative: str, seeds: list[int]) -> None:
    """Refuse options that would change nothing.

    Raises:
        ValueError: a method for real pictures without them; what is for generated ones with them.
    """
    if not pictures and method != "noise":
        raise ValueError(f"--method {method} goes between real pictures; give two of them by --picture")
    if pictures and negative:
        raise ValueError("--negative is for generated pictures; leave it out, or --picture")
    if pictures and seeds != SEEDS and (method != "anid" or len(seeds) > 1):
        raise ValueError("--seed is for generated pictures, and one for --method anid; leave it out, or --picture")


def _between_pictures(
    edited: EditModel,
    level: float,
    label: str,
    method: str,
    ends: tuple[str, str],
    prompts: tuple[str, str],
    seed: int,
    null_text_steps: int,
    steps: int,
    guidance: float,
) -> Way:
    from smooth.edit import interpolate as between
    from smooth.edit.generate import image_size
    from smooth.edit.invert import invert as inverted

    pipeline = edited.at(level)
    pictures = read_pictures(list(ends), image_size(pipeline))
    if method == "vae":
        return between.vae(pipeline, pictures)
    if method == "anid":
        return between.anid(pipeline, pictures, prompts, seed=seed, steps=steps, guidance=guidance)
    with bar(f"inverting, {label}") as progress:
        found = inverted(
            pipeline,
            pictures,
            prompts,
            steps=steps,
            guidance=guidance,
            null_text_steps=null_text_steps,
            shared=True,
            progress=progress,
            cache=cache_of(edited, level),
        )
    return between.real(pipeline, found)


def _painted(label: str, way: Way, count: int, equal_steps: bool) -> Frames:
    from smooth.edit.interpolate import frames

    with bar(f"painting, {label}") as progress:
        made = frames(way, count, equal_steps=equal_steps, progress=progress)
    spread = made.variation_coefficient
    print(f"{label}: distance of neighbours {made.distances.mean():.3g}, variation coefficient {spread:.3f}")
    return made


def _write_film(out: str, found: dict[str, Frames], compare: bool) -> None:
    import numpy as np

    from smooth.edit import media

    shown = [
        dict(zip(found, each, strict=True)) for each in zip(*(made.pictures for made in found.values()), strict=True)
    ]
    film = np.stack([media.side_by_side(each) if compare else each["smooth"] for each in shown])
    media.write(out, media.gif(film) if out.endswith(".gif") else media.mp4(film))
    print(out)


def _save_strip(context: typer.Context, edited: EditModel, out: str, found: dict[str, Frames], compare: bool) -> None:
    from smooth.edit import media

    strips = {label: media.strip(made.pictures) for label, made in found.items()}
    facts = {label: {"ratios": made.ratios.tolist(), "distances": made.distances.tolist()}
             for label, made in found.items()}  # fmt: skip
    save(
        context,
        edited,
        out,
        media.stacked(strips) if compare else strips["smooth"],
        {},
        found=facts,
        inputs=digests(context.params["picture"]),
    )
