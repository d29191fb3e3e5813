"""Pixels and crops, against Pillow used directly."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from smooth.config import ConfigError, LatentsConfig, RunConfig
from smooth.data import pictures
from tests.shards import png

WIDE = np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)
RANDOM = LatentsConfig(image_size=32, crop="random", crops=3)


def test_centre_crop_is_the_largest_square_in_the_middle() -> None:
    (view,) = pictures.views(png(WIDE), "a", (160, 240), LatentsConfig(image_size=32))
    fitted = ImageOps.fit(Image.fromarray(WIDE), (32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(view.pixels, np.asarray(fitted))
    assert view.crop == (0, 40, 160, 160)
    (same,) = pictures.views(png(WIDE[:, :80]), "a", (80, 80), LatentsConfig(image_size=80))
    assert np.array_equal(same.pixels, WIDE[:, :80])


def test_a_crop_is_told_in_pixels_of_the_original() -> None:
    # Ingest kept the middle square of a 300 x 200 original, at 64 px.
    assert pictures.in_original((0, 0, 64, 64), (64, 64), (200, 300)) == (0, 50, 200, 200)
    assert pictures.in_original((32, 16, 64, 48), (64, 64), (200, 300)) == (50, 150, 100, 100)


def test_random_crops_go_by_seed_key_and_number_alone() -> None:
    data = png(WIDE)
    first, again = (pictures.views(data, "a", (80, 120), RANDOM) for _ in range(2))
    assert all(np.array_equal(one.pixels, two.pixels) for one, two in zip(first, again, strict=True))
    assert len({view.crop for view in first}) == 3
    one = pictures.views(data, "a", (80, 120), RANDOM.model_copy(update={"crops": 1}))
    assert one[0].crop == first[0].crop
    for changed in (
        pictures.views(data, "b", (80, 120), RANDOM),
        pictures.views(data, "a", (80, 120), RANDOM.model_copy(update={"seed": 1})),
    ):
        assert changed[0].crop != first[0].crop
    for view in first:
        top, left, height, width = view.crop
        box = left, top, left + width, top + height
        expected = Image.fromarray(WIDE).resize((32, 32), Image.Resampling.LANCZOS, box=box)
        assert np.array_equal(view.pixels, np.asarray(expected))


def test_random_boxes_lie_inside_and_reach_all_sides_and_places() -> None:
    draw = np.random.default_rng(0)
    boxes = np.array([pictures.random_box((120, 80), (32, 32), draw) for _ in range(2000)])
    sides = boxes[:, 2] - boxes[:, 0]
    assert (sides == boxes[:, 3] - boxes[:, 1]).all()
    assert (sides.min(), sides.max()) == (32, 80)
    assert boxes.min() == 0
    assert (boxes[:, 2].max(), boxes[:, 3].max()) == (120, 80)
    # A picture smaller than the latents' is enlarged whole.
    assert pictures.random_box((20, 20), (32, 32), draw) == (0, 0, 20, 20)


BUCKETS = ((32, 32), (24, 40), (40, 24), (16, 64))


def test_a_picture_goes_to_the_size_of_the_nearest_aspect() -> None:
    for width, height, bucket in [(80, 80, 0), (120, 80, 1), (80, 120, 2), (400, 80, 3), (91, 80, 0), (180, 80, 1)]:
        assert pictures.bucket_of((width, height), BUCKETS) == bucket
        ratios = [(width * h) / (height * w) for h, w in BUCKETS]
        assert bucket == int(np.argmin([max(ratio, 1 / ratio) for ratio in ratios]))


def test_views_have_the_size_of_their_bucket() -> None:
    config = LatentsConfig(buckets=BUCKETS, flip=True)
    plain, mirrored = pictures.views(png(WIDE), "a", (160, 240), config)
    assert (plain.bucket, mirrored.bucket) == (1, 1)
    # 80 x 120 at 24:40 is cut to 72 x 120, and told in pixels of an original twice as large.
    assert plain.crop == (8, 0, 144, 240)
    expected = Image.fromarray(WIDE).resize((40, 24), Image.Resampling.LANCZOS, box=(0, 4, 120, 76))
    assert np.array_equal(plain.pixels, np.asarray(expected))
    assert np.array_equal(mirrored.pixels, plain.pixels[:, ::-1])


@pytest.mark.parametrize("shape", BUCKETS)
@pytest.mark.parametrize("size", [(120, 80), (81, 120), (7, 300), (50, 50)])
def test_boxes_of_any_aspect_lie_inside_and_are_as_large_as_can_be(size: tuple[int, int], shape: tuple[int, int]):
    left, top, right, bottom = pictures.centre_box(size, shape)
    (width, height), aspect = (right - left, bottom - top), shape[1] / shape[0]
    assert (left, top) == ((size[0] - width) // 2, (size[1] - height) // 2)
    assert width == size[0] or height == size[1]
    assert abs(width - height * aspect) <= max(1, aspect)  # rounded to pixels
    draw = np.random.default_rng(0)
    for box in (pictures.random_box(size, shape, draw) for _ in range(300)):
        assert 0 <= box[0] < box[2] <= size[0]
        assert 0 <= box[1] < box[3] <= size[1]
        assert min(shape[1], width) <= box[2] - box[0] <= width
        assert abs((box[2] - box[0]) - (box[3] - box[1]) * aspect) <= max(1, aspect)


def test_each_crop_is_followed_by_its_mirror_image() -> None:
    config = RANDOM.model_copy(update={"flip": True})
    found = pictures.views(png(WIDE), "a", (80, 120), config)
    assert len(found) == pictures.views_of_each(config) == 6
    assert [view.flipped for view in found] == [False, True] * 3
    for plain, mirrored in zip(found[::2], found[1::2], strict=True):
        assert np.array_equal(plain.pixels[:, ::-1], mirrored.pixels)
        assert plain.crop == mirrored.crop


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\nbroken", png(WIDE)[:5000], png(WIDE).replace(b"IDAT", b"XXXX")]
)
def test_bytes_that_are_no_picture_are_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(pictures.PictureError):
        pictures.decode(data)


def test_any_mode_becomes_rgb() -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "I;16"):
        buffer = io.BytesIO()
        Image.new(mode, (8, 8)).save(buffer, "TIFF")
        assert pictures.decode(buffer.getvalue()).mode == "RGB"


def test_several_centre_crops_are_a_contradiction() -> None:
    with pytest.raises(ConfigError, match=r"set latents\.crop=random"):
        RunConfig.load("tiny", ["latents.crops=2"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["latents.buckets=[[64, 96]]"], r"set ingest\.resize_mode=keep_ratio"),
        (["latents.buckets=[[64, 64], [32, 32]]"], r"\[64, 64\] and \[32, 32\] have the same aspect"),
        (["latents.buckets=[[64, 64], [64, 64]]"], "have the same aspect"),
        (["latents.buckets=[[64, 7]]"], r"latents\.buckets\.0\.1: Input should be greater than or equal to 8"),
    ],
)
def test_sizes_that_cannot_be_told_apart_or_filled_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.load("tiny", overrides)


@pytest.mark.parametrize(
    "change",
    [{"image_size": 64}, {"crops": 2}, {"seed": 1}, {"flip": True}, {"cache_text": False}, {"buckets": BUCKETS}],
)
def test_preprocessing_is_all_that_decides_a_row(change: dict[str, object]) -> None:
    assert pictures.preprocessing(RANDOM) != pictures.preprocessing(RANDOM.model_copy(update=change))
    assert pictures.preprocessing(RANDOM) == pictures.preprocessing(RANDOM.model_copy(update={"batch_size": 3}))
