"""The commands `smooth generate`, `invert` and `show-params`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    numbered,
    open_quietly,
    read_pictures,
    save,
    told_command,
)

if TYPE_CHECKING:
    from smooth.edit.media import Picture, Pictures


def generate(
    context: typer.Context,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to paint.")],
    seed: Annotated[list[int], typer.Option("--seed", help="Of the noise; give more for more pictures.")] = [0],  # noqa: B006
    out: Annotated[str, typer.Option("--out", help="A .png; several are numbered.")] = "picture.png",
    negative: NegativeOption = "",
    model: ModelOption = BUILTIN,
    base: BaseOption = BUILTIN,
    strength: StrengthOption = 1.0,
    compare: CompareOption = False,
    steps: StepsOption = STEPS,
    guidance: GuidanceOption = GUIDANCE,
    size: Annotated[int | None, typer.Option("--size", help="Side in pixels; else the model's own.")] = None,
) -> None:
    """Paint prompts, each with every seed.

    For example:

        smooth generate "red heart" --seed 7 --steps 5 --out heart.png
    """
    from smooth.cli import reported

    with reported():
        check_name(out, ".png")
        from smooth.edit import generate as painting
        from smooth.edit import media

        edited = open_quietly(model, base)
        asked = [(prompt, number) for prompt in prompts for number in seed]
        painted: dict[str, Pictures] = {}
        for label, level in levels(edited, strength, compare).items():
            with bar(f"painting, {label}") as progress:
                painted[label] = painting.generate(
                    edited.at(level),
                    [prompt for prompt, _ in asked],
                    [number for _, number in asked],
                    steps=steps,
                    guidance=guidance,
                    negative=negative,
                    size=size,
                    progress=progress,
                )
        for index, (prompt, number) in enumerate(asked):
            path = numbered(out, index, len(asked))
            shown = {label: pictures[index] for label, pictures in painted.items()}
            picture = media.side_by_side(shown) if compare else shown["smooth"]
            save(context, edited, path, picture, {"prompts": [prompt], "seed": [number], "out": path})


def invert(
    context: typer.Context,
    picture: Annotated[str, typer.Argument(help="A PNG, JPEG, WebP, GIF or BMP.")],
    prompt: Annotated[str, typer.Argument(help="What it shows.")],
    out: Annotated[
        str, typer.Option("--out", help="A .png: the picture, the VAE's best, what came back.")
    ] = "back.png",
    alone: Annotated[bool, typer.Option("--alone", help="Write nothing but what came back.")] = False,
    null_text_steps: NullTextOption = 10,
    model: ModelOption = BUILTIN,
    base: BaseOption = BUILTIN,
    strength: StrengthOption = 1.0,
    compare: CompareOption = False,
    steps: StepsOption = STEPS,
    guidance: GuidanceOption = GUIDANCE,
) -> None:
    """Find the noise that a real picture comes from, and paint it again. What was found is kept for the next time.

    For example:

        smooth generate "red heart" --seed 7 --steps 5 --out heart.png

        smooth invert heart.png "red heart" --steps 5 --out back.png
    """
    from smooth.cli import reported

    with reported():
        check_name(out, ".png")
        from smooth.edit import invert as inverting
        from smooth.edit import media
        from smooth.edit.generate import image_size
        from smooth.evaluate.reconstruction import PSNR, measure
        from smooth.models.pipeline import decode_latents

        edited = open_quietly(model, base)
        rows: dict[str, Picture] = {}
        for label, level in levels(edited, strength, compare).items():
            pipeline = edited.at(level)
            given = read_pictures([picture], image_size(pipeline))
            with bar(f"inverting, {label}") as progress:
                found = inverting.invert(
                    pipeline, given, [prompt], steps=steps, guidance=guidance, null_text_steps=null_text_steps,
                    cache=cache_of(edited, level), progress=progress,
                )  # fmt: skip
            with bar(f"painting, {label}") as progress:
                back = inverting.reconstruct(pipeline, found, progress=progress)
            bound = decode_latents(pipeline, found.clean.to(pipeline.device))
            ratios = [float(measure(given, each)[PSNR][0]) for each in (back, bound)]
            print(f"{label}: PSNR {ratios[0]:.2f} dB, of the VAE alone {ratios[1]:.2f} dB; "
                  f"error in latents {float(found.found.errors[-1, 0]):.3g}")  # fmt: skip
            columns = {"picture": given[0], "VAE alone": bound[0], "back": back[0]}
            rows[label] = back[0] if alone else media.side_by_side(columns)
        save(context, edited, out, media.stacked(rows) if compare else rows["smooth"], {}, inputs=digests([picture]))


def show_params(picture: Annotated[str, typer.Argument(help="A PNG that smooth made.")]) -> None:
    """Print the command that made a picture: run in the same folder, it makes it again to the byte.

    For example:

        smooth generate "red heart" --seed 7 --steps 5 --out heart.png

        smooth show-params heart.png
    """
    import shlex

    from smooth.cli import reported

    with reported():
        print(shlex.join(told_command(picture)))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (generate, invert, show_params):
        app.command(command.__name__.replace("_", "-"))(command)
