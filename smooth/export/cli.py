"""The command `smooth export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[
        str, typer.Option(help="LoRA (file or folder), folder with a trained unet, or models:/NAME@ALIAS.")
    ],
    out: Annotated[str, typer.Option(help="Local path of the file or folder to write.")],
    kind: Annotated[
        str, typer.Option("--format", help="diffusers or kohya (a LoRA file), merged or onnx (a folder).")
    ] = "diffusers",
    strength: Annotated[
        float | None,
        typer.Option(help="Of the LoRA in merged and onnx: 0 is the base, 1 (as without) what was trained."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export at --out.")] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="Pipeline that a LoRA or UNet alone belongs to (folder, hub id, id@revision); else the preset's."
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="A preset's name, or the path of a .yaml file.")] = "tiny",
) -> None:
    """Write a trained model for other programs: diffusers, kohya-ss, ComfyUI, A1111, ONNX Runtime.

    Once a training is registered, for example:

    smooth export --model models:/smooth-diffusion@candidate --out smooth-lora
    """
    from smooth.cli import reported

    with reported():
        _export(model, kind, out, strength, force, base, preset)


def _export(
    model: str, kind: str, out: str, strength: float | None, force: bool, base: str | None, preset: str
) -> None:
    import tempfile

    from smooth.config import ModelConfig, RunConfig
    from smooth.evaluate import subjects
    from smooth.export import ExportError
    from smooth.export.run import FORMATS
    from smooth.export.run import export as write

    known = next((known for known in FORMATS if known == kind), None)
    if known is None:
        raise ExportError(f"--format {kind}: unknown; there are: {', '.join(FORMATS)}")
    if "://" in out:
        raise ExportError(f"--out {out}: give a path of this machine")
    with tempfile.TemporaryDirectory(prefix="smooth-export-") as scratch:
        belongs = RunConfig.load(preset, []).model
        if base is not None:
            named = subjects.find(base, belongs, scratch)
            if named.trained is not None:
                raise ExportError(f"--base {base} is no whole pipeline; give a diffusers folder or a hub id")
            belongs = ModelConfig(base=named.base, revision=named.revision)
        subject = subjects.find(model, belongs, scratch)
        print(f"wrote {write(subject, known, Path(out), strength=strength, force=force)}")
