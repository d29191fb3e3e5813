"""Strangers' pictures within limits, PNGs that tell how they were made, strips and films."""

from __future__ import annotations

import io
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from smooth.data.pictures import PictureError, decode
from smooth.edit import media

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 33, 48, 3)).astype(np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_picture_is_cut_to_its_middle_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = (255, 0, 0)
    path = tmp_path / "wide.png"
    path.write_bytes(encoded(Image.fromarray(wide)))
    found = media.read_picture(path, 32)
    assert found.shape == (32, 32, 3)
    assert (found[:, 4:-4] == (255, 0, 0)).all()  # Lanczos sees what is beside the square
    assert np.array_equal(found, media.read_picture(path.read_bytes(), 32))


def test_what_is_transparent_lies_on_white() -> None:
    layer = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    layer.paste((0, 0, 255, 255), (0, 0, 16, 32))
    for kind in ("PNG", "WEBP"):
        found = media.read_picture(encoded(layer, kind, lossless=True), 32)
        assert (found[:, :16] == (0, 0, 255)).all()
        assert (found[:, 16:] == 255).all()
    palette = layer.convert("P")
    assert media.read_picture(encoded(palette, "GIF", transparency=palette.getpixel((31, 0))), 32)[0, 31].tolist() == [
        255,
        255,
        255,
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_turn_is_undone_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(FRAMES[0]), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data, background="white")), np.asarray(expected))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Just words, in a file named .png", "notes is no picture; give a whole PNG, JPEG, WEBP, GIF or BMP"),
        (b"", "notes is no picture"),
        (bytes(20_000_000), "notes has more than 16 MiB"),
        (encoded(Image.new("RGB", (1, 1))), "notes has 1 x 1 pixels; give at least 16"),
        (encoded(Image.new("1", (8000, 8000))), "notes has 8000 x 8000 pixels; give at most 50 million"),
        (encoded(Image.new("1", (20000, 20000))), "notes has too many pixels"),
        (encoded(Image.fromarray(FRAMES[0]))[:-900], "notes is broken"),
        (encoded(Image.new("RGB", (32, 32)), "TIFF"), "notes is no picture"),
    ],
    ids=["text", "empty", "20 MB", "1x1", "many pixels", "bomb", "cut", "another format"],
)
def test_what_is_no_picture_within_the_limits_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=message):
        media.read_picture(data, 32, "notes")
    path = tmp_path / "notes.png"
    path.write_bytes(data)
    with pytest.raises(PictureError, match=r"notes\.png " + message.removeprefix("notes ")):
        media.read_picture(path, 32)


def test_files_that_are_not_there_or_are_none(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path, Path("/dev/zero")):
        with pytest.raises(PictureError, match="no such file"):
            media.read_picture(path, 32)


@pytest.mark.filterwarnings("ignore")
def test_broken_bytes_give_our_error_or_a_picture() -> None:
    """Whatever a decoder raises for them."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    sources = [
        encoded(Image.fromarray(FRAMES[0]), kind, exif=exif) if kind != "GIF" else media.gif(FRAMES)
        for kind in ("PNG", "JPEG", "WEBP", "GIF")
    ]
    draw = random.Random(0)
    for turn in range(600):
        data = bytearray(sources[turn % 4])
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(min(len(data), 300 if turn % 2 else len(data)))] = draw.randrange(256)
        try:
            assert media.read_picture(bytes(data), 16).shape == (16, 16, 3)
        except PictureError:
            continue


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.dictionaries(words, st.one_of(words, st.integers(), st.floats(allow_nan=False), st.none())), st.lists(words))
def test_parameters_come_back_from_a_png(parameters: dict[str, object], command: list[str]) -> None:
    data = media.png(FRAMES[0], parameters, ["smooth", *command])
    assert media.read_parameters(data) == (parameters, ["smooth", *command])
    assert data == media.png(FRAMES[0], parameters, ["smooth", *command])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), FRAMES[0])


def foreign(**texts: str) -> bytes:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(f"smooth:{key}", value)
    return encoded(Image.fromarray(FRAMES[0]), pnginfo=info)


@pytest.mark.parametrize(
    "data",
    [
        foreign(),
        foreign(parameters="{}"),
        foreign(parameters="{}", command="no json"),
        foreign(parameters="[]", command='["smooth"]'),
        foreign(parameters="{}", command='["rm", "-rf", "."]'),
        foreign(parameters="{}", command="[" * 100_000),
        b"words",
    ],
)
def test_a_png_that_is_not_ours_says_so(data: bytes) -> None:
    with pytest.raises(PictureError, match="tells no parameters"):
        media.read_parameters(data)


def test_films_go_there_and_back() -> None:
    with Image.open(io.BytesIO(media.gif(FRAMES, frames_per_second=10))) as film:
        assert film.n_frames == 6  # 0 1 2 3 2 1
        assert film.info["duration"] == 100
    with Image.open(io.BytesIO(media.gif(FRAMES, back=False))) as film:
        assert film.n_frames == 4


def test_a_film_in_h264(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    ramps = np.stack(
        [np.tile(np.arange(48, dtype=np.uint8) * 5, (33, 1))[..., None].repeat(3, -1) // k for k in (1, 2, 3, 4)]
    )
    path = tmp_path / "film.mp4"
    path.write_bytes(media.mp4(ramps))
    words = ["-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    shown = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *words], capture_output=True, check=True).stdout
    frames = np.frombuffer(shown, np.uint8).reshape(6, 34, 48, 3)  # an odd side gets one more
    expected = ramps[[0, 1, 2, 3, 2, 1]].astype(int)
    assert np.abs(frames[:, :33] - expected).mean() < 4
    assert frames[:, 33].mean() > 200


def test_strips_and_labels_keep_the_pixels() -> None:
    wide = media.strip(FRAMES)
    assert wide.shape == (33, 4 * 48 + 3 * media.GAP, 3)
    for index, frame in enumerate(FRAMES):
        left = index * (48 + media.GAP)
        assert np.array_equal(wide[:, left : left + 48], frame)
    for picture in (media.side_by_side({"base": FRAMES[0], "smooth, strength 0.75": FRAMES[1]}),
                    media.stacked({"base": FRAMES[0], "smooth": FRAMES[1]})):  # fmt: skip
        assert all(contains(picture, frame) for frame in FRAMES[:2])
        assert picture[0].min() == 255


def contains(picture: np.ndarray, part: np.ndarray) -> bool:
    height, width, _ = part.shape
    return any(
        np.array_equal(picture[top : top + height, left : left + width], part)
        for top in range(picture.shape[0] - height + 1)
        for left in range(picture.shape[1] - width + 1)
        if np.array_equal(picture[top, left], part[0, 0])
    )
