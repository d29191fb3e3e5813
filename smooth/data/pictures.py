"""From a picture's bytes to the pixels that are encoded: decode, crop, resize, flip."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Transpose

from smooth.config import LatentsConfig, Size

RECIPE = "RGB, Lanczos, 2 x / 255 - 1"  # raise by another text when the same settings give other pixels
UNDECODABLE = "undecodable"
ORIENTATION = (
    0x0112  # EXIF's tag; Pillow's own exif_transpose also writes the other tags anew, and fails on broken ones
)
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class PictureError(ValueError):
    """The bytes are not a whole picture."""


@dataclass(frozen=True)
class View:
    """What one row shows of a picture."""

    pixels: npt.NDArray[np.uint8]  # (H, W, 3)
    crop: tuple[int, int, int, int]  # top, left, height, width in pixels of the original picture
    flipped: bool
    bucket: int = 0  # number of the config's size that H and W are


def preprocessing(config: LatentsConfig) -> str:
    """16 hex digits over all that decides pixels and the kind of text, besides the shard itself."""
    names = ("sizes", "crop", "crops", "seed", "flip", "cache_text")
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
    bucket = bucket_of(picture.size, config.sizes)
    size = config.sizes[bucket]
    found = []
    for number in range(config.crops):
        box = (
            centre_box(picture.size, size)
            if config.crop == "centre"
            else random_box(picture.size, size, _draw(key, number, config))
        )
        cut = _cut(picture, box, size)
        crop = in_original(box, picture.size, original_size)
        found.append(View(cut, crop, False, bucket))
        if config.flip:
            found.append(View(np.ascontiguousarray(cut[:, ::-1]), crop, True, bucket))
    return found


def decode(data: bytes, background: str | None = None) -> Image.Image:
    """The picture in RGB. On a ``background`` it is also turned as its camera's tag says.

    Args:
        data: of a file, in any format that Pillow reads.
        background: colour under what is transparent; if None, colours count where nothing of them is seen.

    Raises:
        PictureError: the bytes are not a whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if background is None:
                return opened.convert("RGB")
            turn = TURNS.get(opened.getexif().get(ORIENTATION, 1))
            upright = opened if turn is None else opened.transpose(turn)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            layer = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer).convert("RGB")
    # Pillow's decoders raise SyntaxError and ValueError for broken contents, too.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(str(error)) from error


def bucket_of(picture: tuple[int, int], sizes: Sequence[Size]) -> int:
    """Number of the size whose aspect is nearest to that of a picture of (width, height), by their ratio."""
    aspect = math.log(picture[0] / picture[1])
    return min(range(len(sizes)), key=lambda number: abs(math.log(sizes[number][1] / sizes[number][0]) - aspect))


def centre_box(picture: tuple[int, int], shape: Size) -> Box:
    """The largest box of the aspect of ``shape`` in the middle of a picture of (width, height)."""
    return _place(_largest(picture, shape), picture, lambda room: room // 2)


def random_box(picture: tuple[int, int], shape: Size, draw: np.random.Generator) -> Box:
    """A box of the aspect of ``shape`` anywhere in a picture of (width, height), from its size to the largest."""
    largest = _largest(picture, shape)
    height, width = shape
    across = int(draw.integers(min(width, largest[0]), largest[0], endpoint=True))
    box = across, min(largest[1], max(1, round(across * height / width)))
    return _place(box, picture, lambda room: int(draw.integers(0, room, endpoint=True)))


def _largest(picture: tuple[int, int], shape: Size) -> tuple[int, int]:
    """Width and height of the largest box that fits."""
    height, width = shape
    scale = min(picture[0] / width, picture[1] / height)
    return min(picture[0], max(1, round(scale * width))), min(picture[1], max(1, round(scale * height)))


def _place(box: tuple[int, int], picture: tuple[int, int], choose: Callable[[int], int]) -> Box:
    """Left and top of a box of (width, height), each chosen by the room that there is."""
    left, top = (choose(length - side) for length, side in zip(picture, box, strict=True))
    return left, top, left + box[0], top + box[1]


def in_original(box: Box, size: tuple[int, int], original: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where a box of the ingested picture lies in the original: top, left, height, width in its pixels.

    Ingest keeps the middle of the original, as much as fits the ingested picture's aspect, or all of it.
    """
    (width, height), (whole_height, whole_width) = size, original
    scale = min(whole_width / width, whole_height / height)
    left, top = (whole_width - scale * width) / 2, (whole_height - scale * height) / 2
    place = top + scale * box[1], left + scale * box[0], scale * (box[3] - box[1]), scale * (box[2] - box[0])
    rounded = tuple(int(value) for value in place)
    return rounded[0], rounded[1], rounded[2], rounded[3]


def _cut(picture: Image.Image, box: Box, shape: Size) -> npt.NDArray[np.uint8]:
    height, width = shape
    if (box[2] - box[0], box[3] - box[1]) == (width, height):
        return np.asarray(picture.crop(box))
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))


def _draw(key: str, number: int, config: LatentsConfig) -> np.random.Generator:
    """Random numbers that go by (seed, key, number of the crop) alone."""
    digest = hashlib.sha256(f"{config.seed}/{key}/{number}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
