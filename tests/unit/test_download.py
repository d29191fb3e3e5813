"""What ingest puts in the place of img2dataset's own parts gives the same pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from smooth.config import IngestConfig
from smooth.data import download


def encoded(width: int, height: int) -> bytes:
    coarse = np.random.default_rng(width).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_transforms_made_once_give_the_pictures_of_those_made_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    resizer = download.Resizer(64, "center_crop", False, encode_format="png", encode_quality=6)
    sizes = [(200, 130), (40, 50), (64, 64), (90, 300), (300, 90), (30, 31)]  # enlarged and made smaller in turns
    expected = [resizer(io.BytesIO(encoded(*size))) for size in sizes]
    monkeypatch.setattr("img2dataset.resizer.A", download.TRANSFORMS)
    assert [resizer(io.BytesIO(encoded(*size))) for size in sizes] == expected
    assert all(error is None for *_, error in expected)


@pytest.mark.parametrize(("mode", "expected"), [("center_crop", (64, 64)), ("keep_ratio", (96, 64))])
def test_the_shorter_side_is_resized_and_the_rest_kept_or_cut(mode: str, expected: tuple[int, int]) -> None:
    config = IngestConfig.model_validate({"url_list": "list.parquet", "image_size": 64, "resize_mode": mode})
    picture, *_, error = download._downloader(config, "memory://shards", ["url"]).resizer(io.BytesIO(encoded(300, 200)))
    assert error is None
    with Image.open(io.BytesIO(picture)) as opened:
        assert opened.size == expected
