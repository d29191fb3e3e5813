"""Where an export is written: it appears whole or not at all, and never over anything by accident."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smooth.export import ExportError

# What a folder holds that an export may replace: a merged pipeline, or ONNX graphs.
OURS = ("model_index.json", "unet/model.onnx")


@contextmanager
def replacing(out: Path, force: bool) -> Iterator[Path]:
    """A temporary path for a file or a folder, which becomes ``out`` when the block ends well.

    Args:
        out: the target; folders above it are made.
        force: replace what lies there. A folder is replaced only if it holds an export or nothing.

    Raises:
        ExportError: the target exists.
    """
    out = out.expanduser().absolute()
    _check(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    # On the target's own disk, so that the last step is a rename.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        fresh = Path(scratch, out.name)
        yield fresh
        _check(out, force)
        replaced = Path(scratch, "replaced")
        if out.is_dir():
            out.rename(replaced)
        try:
            fresh.rename(out)
        except OSError:
            if replaced.exists():
                replaced.rename(out)
            raise


def _check(out: Path, force: bool) -> None:
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise ExportError(f"--out {out} exists; give --force to replace it, or another path")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in OURS):
        raise ExportError(
            f"--out {out} is a folder that no export made; --force does not replace it, give another path"
        )
