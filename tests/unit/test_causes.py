from __future__ import annotations

import io

import pytest
from PIL import Image

from smooth.data import causes


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("HTTP Error 404: Not Found", "http_404"),
        ("HTTP Error 503: Service Unavailable", "http_503"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("IncompleteRead(12 bytes read, 5 more expected)", "cut_connection"),
        ("Remote end closed connection without response", "cut_connection"),
        ("<urlopen error [Errno 111] Connection refused>", "unreachable"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("[Errno -3] Temporary failure in name resolution", "dns_busy"),
        ("forbidden_address", "forbidden_address"),
        ("HTTP Error 302: Found - Redirection to url 'file:///etc/passwd' is not allowed", "forbidden_scheme"),
        ("Image decoding error", "undecodable"),
        ("image too small", "too_small"),
        ("truncated", "truncated"),
        ("unknown url type: 'gopher'", "bad_url"),
        ("something never seen", "other"),
        ("", "other"),
    ],
)
def test_messages_map_to_one_cause(message: str, cause: str):
    assert causes.cause_of(message) == cause


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_whole_pictures_pass(kind: str):
    assert causes.defect(encoded(kind)) is None
    assert causes.defect(encoded(kind) + b"\0\0") is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_cut_pictures_do_not(kind: str, part: float):
    data = encoded(kind)
    assert causes.defect(data[: int(len(data) * part)]) == "truncated"


def test_a_thumbnails_end_does_not_hide_a_cut():
    whole, thumbnail = encoded("JPEG", progressive=True), encoded("JPEG")
    # As EXIF does: the thumbnail inside an APP1 segment ahead of the picture's own data.
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert causes.defect(with_thumbnail) is None
    assert causes.defect(with_thumbnail[:-100]) == "truncated"


@pytest.mark.parametrize("data", [b"<html></html>", b"<?xml version='1.0'?><svg/>", b"RIFF\0\0\0\0WAVE", b"{}"])
def test_other_bodies_are_no_pictures(data: bytes):
    assert causes.defect(data) == "not_an_image"


def test_nothing_is_empty():
    assert causes.defect(b"") == "empty"
