"""The commands `smooth generate`, `interpolate`, `invert` and `show-params`."""

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
    numbered,
    open_quietly,
    read_pictures,
    save,
    told_command,
    two,
)

if TYPE_CHECKING:
    from smooth.edit.interpolate import Frames, Way
    from smooth.edit.media import Picture, Pictures
    from smooth.edit.model import EditModel

FILMS = (".gif", ".mp4")


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


def interpolate(
    context: typer.Context,
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help="Of the first and of the last frame, or of both.")
    ],
    seed: Annotated[list[int], typer.Option("--seed", help="Of the first and the last noise; one is both's.")] = [0, 1],  # noqa: B006
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


def invert(
    context: typer.Context,
    picture: Annotated[str, typer.Argument(help="A PNG, JPEG, WebP, GIF or BMP.")],
    prompt: Annotated[str, typer.Argument(help="What it shows.")],
    out: Annotated[
        str, typer.Option("--out", help="A .png: the picture, the VAE's best, what came back.")
    ] = "back.png",
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
        import numpy as np

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
            columns = np.concatenate([given, bound, back])
            rows[label] = media.side_by_side(dict(zip(("picture", "VAE alone", "back"), columns, strict=True)))
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
    for command in (generate, interpolate, invert, show_params):
        app.command(command.__name__.replace("_", "-"))(command)
