"""Pictures in and out: strangers' files read within limits, PNGs that tell how they were made, strips and films."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from smooth import store
from smooth.data import pictures
from smooth.data.pictures import PictureError

MOST_BYTES = 16 * 2**20
MOST_PIXELS = 50_000_000
LEAST_SIDE = 16  # pixels
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # what people upload; Pillow's other decoders see no stranger's bytes
PARAMETERS, COMMAND = "smooth:parameters", "smooth:command"  # keywords of PNG text chunks
MOST_PARAMETERS = 2**20  # bytes of a text chunk that is read
GAP, MARGIN = 4, 4  # pixels between pictures, and around a label
PADDED = 2  # H.264 takes even sides

Picture = npt.NDArray[np.uint8]  # (H, W, 3)
Pictures = npt.NDArray[np.uint8]  # (B, H, W, 3)


def read_picture(source: str | Path | bytes, size: int, name: str = "the picture") -> Picture:
    """A stranger's picture, cut to the square in its middle and resized.

    Args:
        source: a file's path, or its bytes.
        size: side in pixels of the result.
        name: of the bytes, for messages.

    Returns:
        (size, size, 3) uint8; what is transparent lies on white.

    Raises:
        PictureError: no such file, no picture, or one beyond the limits: bytes, pixels, least side.
    """
    if not isinstance(source, bytes):
        name, source = str(source), _read(Path(source))
    if len(source) > MOST_BYTES:
        raise PictureError(f"{name} has more than {MOST_BYTES // 2**20} MiB; give a smaller file")
    try:
        with Image.open(io.BytesIO(source), formats=FORMATS) as opened:  # the header alone
            width, height = opened.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{name} has too many pixels; give at most {MOST_PIXELS // 10**6} million") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(f"{name} is no picture; give a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    if width * height > MOST_PIXELS:
        raise PictureError(f"{name} has {width} x {height} pixels; give at most {MOST_PIXELS // 10**6} million")
    if min(width, height) < LEAST_SIDE:
        raise PictureError(f"{name} has {width} x {height} pixels; give at least {LEAST_SIDE} on each side")
    try:
        whole = pictures.decode(source, background="white")
    except PictureError as error:
        raise PictureError(f"{name} is broken: {error}; save it again") from error
    return fit(whole, size)


def fit(picture: Image.Image, size: int) -> Picture:
    """(size, size, 3) uint8: the largest square in the middle, resized by Lanczos."""
    return np.array(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))


def _read(path: Path) -> bytes:
    """At most one byte more than may be: what is a pipe, a device or endless is not waited for."""
    path = path.expanduser()
    if not path.is_file():
        raise PictureError(f"{path}: no such file")
    with path.open("rb") as handle:
        return handle.read(MOST_BYTES + 1)


def png(picture: Picture, parameters: Mapping[str, Any], command: Sequence[str]) -> bytes:
    """A PNG whose text chunks hold the parameters as JSON and the command that makes it again, to the byte.

    Args:
        picture: (H, W, 3) uint8.
        parameters: all that decided the pixels, as plain JSON values.
        command: its words, the program's first.
    """
    info = PngInfo()
    for key, value in ((PARAMETERS, dict(parameters)), (COMMAND, list(command))):
        info.add_itxt(key, json.dumps(value, ensure_ascii=False, sort_keys=True))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def read_parameters(source: str | Path | bytes, name: str = "the picture") -> tuple[dict[str, Any], list[str]]:
    """Parameters and words of the command from a PNG of :func:`png`.

    Raises:
        PictureError: no such file, or nothing of ours in it.
    """
    if not isinstance(source, bytes):
        name, source = str(source), _read(Path(source))
    nothing = f"{name} tells no parameters: it is no PNG of smooth, or a program has stripped its text chunks"
    try:
        with Image.open(io.BytesIO(source), formats=("PNG",)) as opened:
            texts = {key: str(opened.info[key]) for key in (PARAMETERS, COMMAND) if key in opened.info}
        parameters, command = (json.loads(texts[key][:MOST_PARAMETERS]) for key in (PARAMETERS, COMMAND))
    except (OSError, SyntaxError, ValueError, KeyError, Image.DecompressionBombError, RecursionError) as error:
        raise PictureError(nothing) from error
    if not isinstance(parameters, dict) or not isinstance(command, list) or command[:1] != ["smooth"]:
        raise PictureError(nothing)
    return parameters, [str(word) for word in command]


def gif(frames: Pictures, *, frames_per_second: float = 8.0, back: bool = True) -> bytes:
    """An endless GIF, there and ``back`` again."""
    shown = [Image.fromarray(frame) for frame in _there_and_back(frames, back)]
    buffer = io.BytesIO()
    duration = round(1000 / frames_per_second)
    shown[0].save(buffer, format="GIF", save_all=True, append_images=shown[1:], duration=duration, loop=0)
    return buffer.getvalue()


def mp4(frames: Pictures, *, frames_per_second: float = 8.0, back: bool = True) -> bytes:
    """An H.264 film, there and ``back`` again; a white row or column is added where a side is odd.

    Raises:
        ValueError: the package imageio-ffmpeg is missing.
    """
    try:
        imageio_ffmpeg = importlib.import_module("imageio_ffmpeg")
    except ModuleNotFoundError as error:
        raise ValueError(
            "an MP4 needs the package imageio-ffmpeg; it is in the extra studio; or ask for a .gif"
        ) from error

    _, height, width, _ = frames.shape
    add = ((0, 0), (0, height % PADDED), (0, width % PADDED), (0, 0))
    shown = np.stack(list(_there_and_back(np.pad(frames, add, constant_values=255), back)))
    size = f"{shown.shape[2]}x{shown.shape[1]}"
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{frames_per_second:g}", "-i", "-"]
    wanted = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory(prefix="smooth-film-") as folder:
        path = Path(folder, "film.mp4")
        words = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *given, *wanted, str(path)]
        done = subprocess.run(words, input=shown.tobytes(), capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ffmpeg ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
        return path.read_bytes()


def strip(frames: Pictures) -> Picture:
    """Frames beside one another on white."""
    _, height, width, _ = frames.shape
    canvas = np.full((height, len(frames) * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        left = index * (width + GAP)
        canvas[:, left : left + width] = frame
    return canvas


def stacked(rows: Mapping[str, Picture]) -> Picture:
    """Pictures below one another, each under its label."""
    return _labelled(rows, downwards=True)


def side_by_side(columns: Mapping[str, Picture]) -> Picture:
    """Pictures beside one another, each under its label."""
    return _labelled(columns, downwards=False)


def write(path: str, data: bytes) -> None:
    """Write a file whole or not at all, on any fsspec path."""
    store.write_bytes(path if "://" in path else str(Path(path).expanduser().absolute()), data)


def _labelled(parts: Mapping[str, Picture], *, downwards: bool) -> Picture:
    font = ImageFont.load_default(11)
    boxes = {label: font.getbbox(label) for label in parts}
    label_height = int(max(box[3] for box in boxes.values())) + 2 * MARGIN
    cells = [(label, part, max(part.shape[1], int(boxes[label][2]) + 2 * MARGIN)) for label, part in parts.items()]
    heights, widths = [part.shape[0] + label_height for _, part, _ in cells], [width for *_, width in cells]
    gaps = GAP * (len(cells) - 1)
    size = (max(widths), sum(heights) + gaps) if downwards else (sum(widths) + gaps, max(heights))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    left = top = 0
    for (label, part, width), height in zip(cells, heights, strict=True):
        draw.text((left + MARGIN, top + MARGIN), label, fill="black", font=font)
        canvas.paste(Image.fromarray(part), (left, top + label_height))
        left, top = (left, top + height + GAP) if downwards else (left + width + GAP, top)
    return np.array(canvas)


def _there_and_back(frames: Pictures, back: bool) -> Iterator[Picture]:
    yield from frames
    if back:
        yield from frames[-2:0:-1]
