"""Artifacts on any fsspec path: a folder is complete when its ``manifest.json`` exists.

Every stage writes its files first and its manifest last, through a temporary name and a rename,
so a reader never sees half an artifact. Paths are plain strings (``/a/b``, ``s3://bucket/a``).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import posixpath
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs

if TYPE_CHECKING:
    import numpy.typing as npt

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # end of the name of a file that is being written


FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError):
    """A disk, or a user's share of it, is full; the message names the path and the way out."""

    def __str__(self) -> str:
        return str(self.strerror)


class ArtifactError(ValueError):
    """An artifact is missing, incomplete or not what its manifest says."""


def join(root: str, *parts: str) -> str:
    """Join path parts with forward slashes, keeping any ``scheme://`` of the root."""
    return posixpath.join(root, *parts)


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec filesystem of ``path`` and the path inside it."""
    fs, inner = url_to_fs(path)
    return fs, cast(str, inner)


def exists(path: str) -> bool:
    """Whether ``path`` exists on its filesystem."""
    fs, inner = filesystem(path)
    return bool(fs.exists(inner))


@contextmanager
def writing(path: str) -> Iterator[BinaryIO]:
    """Open ``path`` for writing so that it appears whole when the block ends, or not at all.

    The temporary name is the writer's own: one that was killed, or believed dead, can't spoil the next one's file.
    """
    fs, inner = filesystem(path)
    temporary = f"{inner}.{secrets.token_hex(4)}{PARTIAL}"
    try:
        with told_when_full(path):
            fs.makedirs(posixpath.dirname(inner), exist_ok=True)
            with fs.open(temporary, "wb") as handle:
                yield handle
        fs.mv(temporary, inner)
    except BaseException:
        with suppress(FileNotFoundError):
            fs.rm_file(temporary)
        raise


@contextmanager
def told_when_full(path: str) -> Iterator[None]:
    """Let the error of a full disk say which: the system's names no file where it is met in the midst of one.

    Raises:
        DiskFullError: in the place of an OSError that means it.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(
            error.errno,
            f"no space left on the disk of {path}{_free(path)}; free some, or set storage.root to another disk. "
            "What is finished is kept: run it again, and it goes on from there",
        ) from error


def _free(path: str) -> str:
    """What is free at the nearest folder above that is there."""
    if "://" in path:
        return ""
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    return f" ({shutil.disk_usage(folder).free / 2**20:.1f} MiB free)"


def write_bytes(path: str, data: bytes) -> None:
    """Write ``data`` so that ``path`` appears whole or not at all."""
    with writing(path) as handle:
        handle.write(data)


def remove(path: str) -> None:
    """Delete a file."""
    fs, inner = filesystem(path)
    fs.rm_file(inner)


def read_bytes(path: str) -> bytes:
    """Read a whole file."""
    fs, inner = filesystem(path)
    return cast(bytes, fs.cat_file(inner))


def write_array(path: str, array: npt.NDArray[Any]) -> None:
    """Write an array as ``.npy``, atomically."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def read_array(path: str) -> npt.NDArray[Any]:
    """Read what :func:`write_array` wrote."""
    import numpy as np

    found: npt.NDArray[Any] = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    return found


def names(folder: str) -> set[str]:
    """Of all finished files below ``folder``, relative to it, by one listing; none where there is no folder."""
    fs, inner = filesystem(folder)
    fs.invalidate_cache(inner)
    return {posixpath.relpath(path, inner) for path in fs.find(inner) if not path.endswith(PARTIAL)}


def write_json(path: str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_bytes(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")


def is_complete(folder: str) -> bool:
    """Whether ``folder`` holds a finished artifact."""
    return exists(join(folder, MANIFEST))


def write_manifest(folder: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Finish the artifact in ``folder``: its manifest is the last file written."""
    write_json(join(folder, MANIFEST), manifest)
    return manifest


def digest(folder: str) -> str:
    """SHA-256 of a finished artifact's manifest: another one where it was made again in its place."""
    return hashlib.sha256(read_bytes(join(folder, MANIFEST))).hexdigest()


def read_manifest(folder: str) -> dict[str, Any]:
    """Return the manifest of a finished artifact.

    Raises:
        ArtifactError: the folder has no manifest, or one that is not JSON.
    """
    path = join(folder, MANIFEST)
    if not exists(path):
        raise ArtifactError(
            f"no finished artifact at {folder}: it has no {MANIFEST}. Run the stage that makes it first."
        )
    try:
        return cast(dict[str, Any], json.loads(read_bytes(path)))
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is not JSON ({error}); delete the folder and run the stage again") from error


def chunks(handle: BinaryIO, size: int = 1 << 20) -> Iterator[bytes]:
    """Yield the rest of ``handle`` in blocks of ``size`` bytes."""
    while block := handle.read(size):
        yield block


def sha256(path: str) -> str:
    """Hex SHA-256 of a file on any filesystem, streamed."""
    fs, inner = filesystem(path)
    digest = hashlib.sha256()
    with fs.open(inner, "rb") as handle:
        for block in chunks(handle):
            digest.update(block)
    return digest.hexdigest()
