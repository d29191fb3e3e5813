"""What ingest puts in the place of img2dataset's own parts gives the same pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

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
