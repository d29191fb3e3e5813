"""From a picture's bytes to the pixels that are encoded: decode, crop, resize, flip."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from smooth.config import LatentsConfig

RECIPE = "RGB, Lanczos, 2 x / 255 - 1"  # raise by another text when the same settings give other pixels
UNDECODABLE = "undecodable"

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class PictureError(ValueError):
    """The bytes are not a whole picture."""


@dataclass(frozen=True)
class View:
    """What one row shows of a picture."""

    pixels: npt.NDArray[np.uint8]  # (S, S, 3)
    crop: tuple[int, int, int, int]  # top, left, height, width in pixels of the original picture
    flipped: bool


def preprocessing(config: LatentsConfig) -> str:
    """16 hex digits over all that decides pixels and the kind of text, besides the shard itself."""
    names = ("image_size", "crop", "crops", "seed", "flip", "cache_text")
    settings = {name: getattr(config, name) for name in names}
    return hashlib.sha256(json.dumps({"recipe": RECIPE, **settings}).encode()).hexdigest()[:16]


def views_of_each(config: LatentsConfig) -> int:
    """Rows that a picture gives."""
    return config.crops * (2 if config.flip else 1)


def views(data: bytes, key: str, original_size: tuple[int, int], config: LatentsConfig) -> list[View]:
    """The rows of one picture: each crop, followed by its mirror image where ``config.flip`` wants it.

    Raises:
        PictureError: the bytes are not a whole picture.
    """
    picture = decode(data)
    size = config.image_size
    found = []
    for number in range(config.crops):
        box = (
            centre_box(picture.size)
            if config.crop == "centre"
            else random_box(picture.size, size, _draw(key, number, config))
        )
        cut = _cut(picture, box, size)
        crop = in_original(box, picture.size, original_size)
        found.append(View(cut, crop, False))
        if config.flip:
            found.append(View(np.ascontiguousarray(cut[:, ::-1]), crop, True))
    return found


def decode(data: bytes) -> Image.Image:
    """The picture in RGB.

    Raises:
        PictureError: the bytes are not a whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return opened.convert("RGB")
    # Pillow's decoders raise SyntaxError and ValueError for broken contents, too.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(str(error)) from error


def centre_box(size: tuple[int, int]) -> Box:
    """The largest square in the middle of a picture of (width, height)."""
    side = min(size)
    left, top = ((length - side) // 2 for length in size)
    return left, top, left + side, top + side


def random_box(size: tuple[int, int], smallest: int, draw: np.random.Generator) -> Box:
    """A square anywhere in a picture of (width, height), of any side from ``smallest`` to the largest that fits."""
    largest = min(size)
    side = int(draw.integers(min(smallest, largest), largest, endpoint=True))
    left, top = (int(draw.integers(0, length - side, endpoint=True)) for length in size)
    return left, top, left + side, top + side


def in_original(box: Box, size: tuple[int, int], original: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where a box of the ingested picture lies in the original: top, left, height, width in its pixels.

    Ingest keeps the middle of the original, as much as fits the ingested picture's aspect.
    """
    (width, height), (whole_height, whole_width) = size, original
    scale = min(whole_width / width, whole_height / height)
    left, top = (whole_width - scale * width) / 2, (whole_height - scale * height) / 2
    place = top + scale * box[1], left + scale * box[0], scale * (box[3] - box[1]), scale * (box[2] - box[0])
    rounded = tuple(int(value) for value in place)
    return rounded[0], rounded[1], rounded[2], rounded[3]


def _cut(picture: Image.Image, box: Box, size: int) -> npt.NDArray[np.uint8]:
    if (box[2] - box[0], box[3] - box[1]) == (size, size):
        return np.asarray(picture.crop(box))
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS, box=box))


def _draw(key: str, number: int, config: LatentsConfig) -> np.random.Generator:
    """Random numbers that go by (seed, key, number of the crop) alone."""
    digest = hashlib.sha256(f"{config.seed}/{key}/{number}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
