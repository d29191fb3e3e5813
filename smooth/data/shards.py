"""Read WebDataset shards as rows of pixels, in key order; a broken picture is a row with its failure named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from smooth import store

RECIPE = "RGB, shorter side by Lanczos, centre crop, 2 x / 255 - 1"  # part of the preprocessing's hash


def resize_and_crop(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Decode a picture to ``(size, size, 3)`` uint8 RGB: shorter side resized to ``size``, centre kept.

    Raises:
        OSError: the bytes are not a whole picture.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def centre_square(height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the middle square of a picture, in its pixels."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


class Reader:
    """Turns a shard's name into its rows; a callable that Ray Data maps over the shards."""

    def __init__(self, folder: str, encoding: str, image_size: int) -> None:
        """``folder`` holds the shards, ``encoding`` is their pictures' extension, ``image_size`` in pixels."""
        self.folder = folder
        self.encoding = encoding
        self.image_size = image_size

    def __call__(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a shard's rows ordered by key: key, caption, pixels, crop, original_size, failure.

        The shard is held in memory as it lies in storage, so that its members can be taken in order
        (img2dataset writes them as downloads end) without unpacking it to disk.

        Raises:
            ArtifactError: the tar is broken or does not hold the pictures that the manifest counts.
        """
        path = store.join(self.folder, item["shard"])
        again = f"delete {self.folder} and run ingest again"
        try:
            with tarfile.open(fileobj=io.BytesIO(store.read_bytes(path))) as archive:
                members = {member.name: member for member in archive}
                names = sorted(name for name in members if name.endswith(f".{self.encoding}"))
                if len(names) != item["rows"]:
                    raise store.ArtifactError(
                        f"{path} holds {len(names)} pictures, the manifest counts {item['rows']}; {again}"
                    )
                for name in names:
                    stem = name.removesuffix(self.encoding)
                    picture, caption, facts = (
                        _content(archive, members[stem + extension]) for extension in (self.encoding, "txt", "json")
                    )
                    yield self._row(stem.rstrip("."), picture, caption.decode(), json.loads(facts))
        except (tarfile.TarError, KeyError) as error:
            raise store.ArtifactError(f"{path} is not a whole shard ({error}); {again}") from error

    def _row(self, key: str, picture: bytes, caption: str, facts: dict[str, Any]) -> dict[str, Any]:
        size = facts["original_height"], facts["original_width"]
        failure = ""
        try:
            pixels = resize_and_crop(picture, self.image_size)
        except OSError:  # includes PIL's UnidentifiedImageError
            failure = "undecodable"
            pixels = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        return {
            "key": key,
            "caption": caption,
            "pixels": pixels,
            "crop": np.array(centre_square(*size), np.int32),
            "original_size": np.array(size, np.int32),
            "failure": failure,
        }


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = archive.extractfile(member)
    if handle is None:
        raise tarfile.ReadError(f"{member.name} is not a file")
    return handle.read()
