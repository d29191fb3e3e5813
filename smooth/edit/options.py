"""What the commands share that make pictures: options, bars, pictures that tell their command."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any
from unicodedata import category

import typer

if TYPE_CHECKING:
    from smooth.edit import Progress
    from smooth.edit.invert import Cache
    from smooth.edit.media import Picture, Pictures
    from smooth.edit.model import EditModel

ModelOption = Annotated[
    str, typer.Option("--model", help="Pipeline (folder or hub id), LoRA (file or folder), or models:/NAME@ALIAS.")
]
BaseOption = Annotated[str, typer.Option("--base", help="The pipeline that a LoRA or a UNet alone belongs to.")]
StrengthOption = Annotated[float, typer.Option("--strength", help="Of what was trained: 0 is the base, 1 as trained.")]
CompareOption = Annotated[bool, typer.Option("--compare", help="Put the base beside it.")]
StepsOption = Annotated[int, typer.Option("--steps", help="DDIM steps.")]
GuidanceOption = Annotated[float, typer.Option("--guidance", help="Classifier-free guidance scale; 1 is none.")]
NegativeOption = Annotated[str, typer.Option("--negative", help="What guidance leads away from.")]
NullTextOption = Annotated[
    int, typer.Option("--null-text-steps", help="Optimizer steps of null-text inversion, at each DDIM step; 0 is none.")
]
BUILTIN = "builtin:tiny"
PICTURE_COMMANDS = ("generate", "interpolate", "invert", "edit", "drag")
TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # letters that show others in another order


def check_name(out: str, *suffixes: str) -> None:
    """Refuse a file that can't be written, before any work is done.

    Raises:
        ValueError: another ending than those.
    """
    if PurePath(out).suffix not in suffixes:
        raise ValueError(f"--out {out}: give a name that ends in {' or '.join(suffixes)}")


def two(name: str, values: list[Any], least: int = 1) -> tuple[Any, Any]:
    """First and last of one or two values.

    Raises:
        ValueError: another number of them.
    """
    if not least <= len(values) <= 2:
        raise ValueError(f"{len(values)} {name}: give {'one or ' if least == 1 else ''}two")
    return values[0], values[-1]


def open_quietly(model: str, base: str) -> EditModel:
    """The model, without its libraries' own bars."""
    import diffusers
    import transformers

    from smooth.config import ModelConfig
    from smooth.edit.model import open_model

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    name, _, revision = base.partition("@")
    return open_model(model, ModelConfig(base=name, revision=revision or None), scratch=f"{_root()}/models")


def levels(edited: EditModel, strength: float, compare: bool) -> dict[str, float]:
    """Strengths to paint with, by their labels.

    Raises:
        ValueError: a comparison of a pipeline that has nothing trained beside it.
    """
    if compare and not edited.has_base:
        raise ValueError(f"--compare: {edited.name} is a whole pipeline and names no base; give a LoRA by --model")
    return ({"base": 0.0} if compare else {}) | {"smooth": strength}


def cache_of(edited: EditModel, level: float) -> Cache:
    """Where inversions of the model at a strength are kept."""
    from smooth.edit.invert import Cache

    return Cache(f"{_root()}/inversions", edited.identity_at(level))


def read_pictures(paths: list[str], size: int) -> Pictures:
    """(B, size, size, 3) uint8 of strangers' files."""
    import numpy as np

    from smooth.edit import media

    return np.stack([media.read_picture(path, size) for path in paths])


@contextmanager
def bar(what: str) -> Iterator[Progress]:
    """A progress bar on standard error, gone at its end."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def save(
    context: typer.Context,
    edited: EditModel,
    path: str,
    picture: Picture,
    changed: Mapping[str, Any],
    **facts: Any,
) -> None:
    """Write the PNG with all parameters and the command that makes it alone: this one with ``changed`` parameters."""
    from smooth import __version__
    from smooth.edit import media

    values = {**context.params, **changed, "model": edited.name}
    known = {"smooth": __version__, "command": context.info_name, "identity": edited.identity, **values, **facts}
    media.write(path, media.png(picture, known, command_of(context, values)))
    print(path)


def command_of(context: typer.Context, values: Mapping[str, Any]) -> list[str]:
    """The words of a command with every option that has a value, whatever its default is."""
    options, arguments = [], []
    for parameter in context.command.params:
        value = values.get(str(parameter.name))
        several = [each for each in (value if isinstance(value, list | tuple) else [value]) if each is not None]
        if parameter.param_type_name == "argument":
            arguments += [str(each) for each in several]
        elif isinstance(value, bool):
            options += [parameter.opts[0]] if value else []
        else:
            options += [f"{parameter.opts[0]}={each}" for each in several]
    return ["smooth", str(context.info_name), *options, "--", *arguments]


def told_command(picture: str) -> list[str]:
    """The words of the command that made a picture, which may be a stranger's: nothing that a terminal obeys.

    Raises:
        ValueError: no PNG of ours, or one that tells another command.
    """
    from smooth.edit import media

    _, words = media.read_parameters(picture)
    unseen = any(letter in TURNING or (category(letter) == "Cc" and letter not in "\n\t") for letter in "".join(words))
    if words[1:2] == [] or words[1] not in PICTURE_COMMANDS or unseen:
        raise ValueError(f"{picture} tells a command that makes no picture, or that hides a part of itself")
    return words


def digests(paths: list[str] | None) -> dict[str, str]:
    """Hex SHA-256 of the pictures that a command was given, for its parameters."""
    from smooth import store

    return {path: store.sha256(str(Path(path).expanduser())) for path in paths or []}


def numbered(path: str, index: int, count: int) -> str:
    """The path of one of several pictures."""
    stem, suffix = posixpath.splitext(path)  # a path of pathlib would take a slash of s3://
    return path if count == 1 else f"{stem}-{index + 1}{suffix}"


def _root() -> str:
    from smooth.sections import StorageConfig

    return StorageConfig().root
