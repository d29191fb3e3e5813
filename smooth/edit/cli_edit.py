"""The commands `smooth edit` and `smooth drag`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from smooth.edit import GUIDANCE, STEPS
from smooth.edit.options import (
    BUILTIN,
    BaseOption,
    CompareOption,
    GuidanceOption,
    ModelOption,
    NullTextOption,
    StepsOption,
    StrengthOption,
    bar,
    cache_of,
    check_name,
    levels,
    open_quietly,
    read_pictures,
    save,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from smooth.edit.drag import Dragged, Point
    from smooth.edit.media import Picture, Pictures


def edit(
    context: typer.Context,
    picture: Annotated[str, typer.Argument(help="A PNG, JPEG, WebP, GIF or BMP.")],
    source: Annotated[str, typer.Argument(help="What it shows.")],
    target: Annotated[str, typer.Argument(help="What it should show.")],
    ratio: Annotated[
        list[float], typer.Option("--ratio", help="r, 0 to 1: when the prompt is switched; the less, the later.")
    ] = [0.6, 0.7, 0.8, 0.9],  # noqa: B006
    sdedit: Annotated[
        list[float] | None, typer.Option("--sdedit", help="A strength of the baseline SDEdit, to be put below.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of SDEdit's noise.")] = 0,
    out: Annotated[
        str, typer.Option("--out", help="A .png: of one ratio the picture alone, else all of them.")
    ] = "edit.png",
    null_text_steps: NullTextOption = 10,
    model: ModelOption = BUILTIN,
    base: BaseOption = BUILTIN,
    strength: StrengthOption = 1.0,
    compare: CompareOption = False,
    steps: StepsOption = STEPS,
    guidance: GuidanceOption = GUIDANCE,
) -> None:
    """Edit a real picture: invert it with its own prompt, then switch to another on the way back.

    For example:

        smooth generate "red heart" --seed 7 --steps 5 --out heart.png

        smooth edit heart.png "red heart" "blue heart" --steps 5 --out edit.png
    """
    from smooth.cli import reported

    with reported():
        check_name(out, ".png")
        from smooth.edit import edit as editing
        from smooth.edit import media
        from smooth.edit.generate import image_size
        from smooth.edit.invert import invert

        edited = open_quietly(model, base)
        rows: dict[str, dict[str, Picture]] = {}
        for label, level in levels(edited, strength, compare).items():
            pipeline = edited.at(level)
            given = read_pictures([picture], image_size(pipeline))
            settings: dict[str, Any] = {"steps": steps, "guidance": guidance}
            with bar(f"inverting, {label}") as progress:
                found = invert(
                    pipeline, given, [source], null_text_steps=null_text_steps, cache=cache_of(edited, level),
                    progress=progress, **settings,
                )  # fmt: skip
            with bar(f"painting, {label}") as progress:
                switched = editing.edit(pipeline, found, [target], ratios=ratio, progress=progress)
            rows[label] = _row(given, "r", ratio, switched)
            if sdedit:
                rows[f"{label}, SDEdit"] = _noised(label, pipeline, given, target, sdedit, seed, settings)
        several = media.stacked({label: media.side_by_side(row) for label, row in rows.items()})
        save(context, edited, out, switched[0, 0] if len(rows) == len(ratio) == 1 else several, {})


def _noised(
    label: str,
    pipeline: Any,
    given: Pictures,
    target: str,
    strengths: list[float],
    seed: int,
    settings: dict[str, Any],
) -> dict[str, Picture]:
    """The row of SDEdit."""
    from smooth.edit.edit import sdedit

    with bar(f"SDEdit, {label}") as progress:
        made = sdedit(pipeline, given, [target], strengths=strengths, seed=seed, progress=progress, **settings)
    return _row(given, "strength", strengths, made)


def _row(given: Pictures, name: str, values: list[float], made: npt.NDArray[np.uint8]) -> dict[str, Picture]:
    """The picture and its edits by their labels."""
    return {"picture": given[0]} | {f"{name} {value:g}": each[0] for value, each in zip(values, made, strict=True)}


def drag(
    context: typer.Context,
    picture: Annotated[str, typer.Argument(help="A PNG, JPEG, WebP, GIF or BMP.")],
    prompt: Annotated[str, typer.Argument(help="What it shows.")],
    move: Annotated[
        list[str], typer.Option("--move", help="X,Y:X,Y from where to where, in pixels of the model's square picture.")
    ],
    mask: Annotated[
        str | None, typer.Option("--mask", help="A picture that is white where the first may change.")
    ] = None,
    iterations: Annotated[int, typer.Option("--iterations", help="Of the latent's optimizer, at most.")] = 80,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of the latent.")] = 0.01,
    depth: Annotated[float, typer.Option("--depth", help="Share of the steps that the picture is inverted by.")] = 0.7,
    mask_weight: Annotated[float, typer.Option("--mask-weight", help="How firmly the mask holds.")] = 0.1,
    out: Annotated[str, typer.Option("--out", help="A .png.")] = "dragged.png",
    model: ModelOption = BUILTIN,
    base: BaseOption = BUILTIN,
    strength: StrengthOption = 1.0,
    compare: CompareOption = False,
    steps: StepsOption = 50,
) -> None:
    """Drag points of a real picture to other places, as DragDiffusion does (without its LoRA of the picture).

    For example:

        smooth generate "red heart" --seed 7 --steps 5 --out heart.png

        smooth drag heart.png "red heart" --move 32,44:32,54 --iterations 5
    """
    from smooth.cli import reported

    with reported():
        check_name(out, ".png")
        from smooth.edit import drag as dragging
        from smooth.edit import media
        from smooth.edit.generate import image_size

        handles, targets = zip(*(_ends(each) for each in move), strict=True)
        settings = dragging.DragSettings(
            steps=steps, depth=depth, iterations=iterations, learning_rate=learning_rate, mask_weight=mask_weight
        )
        edited = open_quietly(model, base)
        found: dict[str, Dragged] = {}
        for label, level in levels(edited, strength, compare).items():
            pipeline = edited.at(level)
            size = image_size(pipeline)
            (given,) = read_pictures([picture], size)
            free = None if mask is None else read_pictures([mask], size)[0].mean(axis=2) > 127
            with bar(f"dragging, {label}") as progress:
                found[label] = dragging.drag(
                    pipeline, given, prompt, handles, targets, mask=free, settings=settings, progress=progress
                )
            _tell(label, found[label], targets)
        pictures = {label: each.picture for label, each in found.items()}
        shown = media.side_by_side({"picture": given, **pictures}) if compare else pictures["smooth"]
        facts = {label: {"handles": each.handles.tolist(), "losses": each.losses.tolist()}
                 for label, each in found.items()}  # fmt: skip
        save(context, edited, out, shown, {}, found=facts)


def _ends(text: str) -> tuple[Point, Point]:
    """Handle and target of ``X,Y:X,Y``."""
    try:
        (x, y), (to_x, to_y) = (map(float, point.split(",")) for point in text.split(":"))
    except ValueError as error:
        raise ValueError(f"--move {text}: give X,Y:X,Y, as 32,44:32,54") from error
    return (x, y), (to_x, to_y)


def _tell(label: str, found: Dragged, targets: tuple[Point, ...]) -> None:
    way = "arrived" if found.arrived else "not all arrived"
    print(f"{label}: {way} after {len(found.losses)} iterations")
    for (x, y), (to_x, to_y), wanted in zip(found.handles[0], found.handles[-1], targets, strict=True):
        print(f"  ({x:g}, {y:g}) came to ({to_x:g}, {to_y:g}), target ({wanted[0]:g}, {wanted[1]:g})")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("edit")(edit)
    app.command("drag")(drag)
