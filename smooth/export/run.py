"""Write a model in one of the formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from smooth.evaluate.subjects import Subject
from smooth.export import ExportError
from smooth.export.targets import replacing
from smooth.models import WEIGHTS_NAME, trained_files

Format = Literal["diffusers", "kohya", "merged", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIX = ".safetensors"


def export(
    subject: Subject,
    kind: Format,
    out: Path,
    *,
    strength: float | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Write ``subject`` to ``out``, whole or not at all.

    Args:
        subject: a LoRA or a whole UNet beside its base, or a pipeline.
        kind: ``diffusers`` and ``kohya`` are LoRA files, ``merged`` a pipeline's folder, ``onnx`` a folder of graphs.
        out: local path. For ``diffusers`` a folder, or a file that ends in ``.safetensors``; for ``kohya`` such a file.
        strength: of the LoRA inside ``merged`` and ``onnx``; None is 1.
        force: replace an earlier export.
        say: takes a line on what was found.

    Returns:
        The file or folder written.

    Raises:
        ExportError: the model has no such form, or something is in the way.
    """
    if kind in ("diffusers", "kohya"):
        if strength is not None:
            raise ExportError(
                "--strength is for --format merged and onnx; a LoRA file gets its strength where it is loaded"
            )
        return _write_lora(subject, kind, out, force)
    if strength is not None and not abs(strength) < float("inf"):
        raise ExportError(f"--strength {strength} is no finite number; 0 is the base, 1 what was trained")
    if kind == "onnx":
        from smooth.export import graphs

        graphs.require()
    from smooth.export.merged import merge

    with replacing(out, force) as path:
        pipeline = merge(subject, 1.0 if strength is None else strength)
        if kind == "merged":
            pipeline.save_pretrained(path, safe_serialization=True)
            return out
        for name, share in graphs.write(pipeline, path):
            say(f"{name}: ONNX Runtime differs from torch by {share:.1e} of the largest value")
    return out


def _write_lora(subject: Subject, kind: Format, out: Path, force: bool) -> Path:
    from smooth.export import adapters

    if subject.trained is None:
        raise ExportError(f"{subject.base} is a whole pipeline and holds no LoRA; use --format merged or onnx")
    if trained_files(subject.trained) != [WEIGHTS_NAME]:
        raise ExportError(
            f"{subject.trained} is a whole fine-tuned UNet, which can't become a LoRA file; use --format merged or "
            "onnx, or train with train.method=lora"
        )
    if out.suffix != SUFFIX:
        if kind == "kohya":
            raise ExportError(f"--out {out}: a kohya LoRA is one file; let its name end in {SUFFIX}")
        out = out / WEIGHTS_NAME
    adapter = adapters.read(subject.trained)
    with replacing(out, force) as path:
        path.write_bytes(adapters.diffusers_file(adapter) if kind == "diffusers" else adapters.kohya_file(adapter))
    return out
