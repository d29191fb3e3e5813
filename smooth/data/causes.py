"""Why a picture was not kept: one short name per cause, from the bytes and from the downloader's messages."""

from __future__ import annotations

import io
import re
import sys
import warnings
from typing import Literal

from PIL import Image

Defect = Literal["empty", "not_an_image", "truncated"]

# What stands in a shard's `error_message`, first match wins: img2dataset's own words, those of urllib and
# http.client (str of the exception), and the names of causes that are known where they arise.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), cause)
    for pattern, cause in (
        (r"^([a-z_]+)$", r"\1"),  # the causes of `defect` and of smooth.data.fetch, by their names
        (r"^image too small$", "too_small"),
        (r"^Image decoding error$", "undecodable"),
        (r"infinite loop", "redirect_loop"),
        (r"Redirection to url .* is not allowed", "forbidden_scheme"),
        (r"^HTTP Error (\d{3})", r"http_\1"),
        (r"timed out", "timeout"),
        (r"IncompleteRead|Remote end closed|Connection reset|Broken pipe", "cut_connection"),
        (r"Temporary failure in name resolution", "dns_busy"),
        (r"getaddrinfo|Name or service not known|name resolution|No address associated", "dns"),
        (r"Connection refused|unreachable|No route to host", "unreachable"),
        (r"SSL|CERTIFICATE", "tls"),
        (r"unknown url type|no host given|nonnumeric port|can't contain|Invalid IPv6|Port could not", "bad_url"),
    )
)
OTHER = "other"

# Where a picture that was not kept got lost; all other causes are the web's or the guard's.
IN_BODY = frozenset({"empty", "not_an_image", "truncated", "too_many_pixels", "undecodable"})
IN_PICTURE = frozenset({"too_small"})
# Gone tomorrow, maybe: what `smooth ingest retry` asks for again.
TRANSIENT = frozenset({"timeout", "too_slow", "cut_connection", "unreachable", "dns_busy"}) | {
    f"http_{status}" for status in (408, 425, 429, 500, 502, 503, 504)
}

_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_SIGNATURES = (
    _PNG,
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"\xff\x0a",
    b"\x00\x00\x00\x0cJXL ",
)


def cause_of(message: str, status: str = "failed_to_download") -> str:
    """The cause that a shard's ``error_message`` and ``status`` stand for; ``other`` when no pattern fits."""
    for pattern, cause in _PATTERNS:
        if match := pattern.search(message):
            return match.expand(cause)
    return "undecodable" if status == "failed_to_resize" else OTHER


def defect(data: bytes) -> Defect | None:
    """What is wrong with a response body before it is decoded, or None.

    OpenCV decodes a cut JPEG or PNG without complaint and says the same of HTML, of nothing and of
    half a WebP; so the body's own structure is asked first. Unknown but plausible formats pass.
    """
    if not data:
        return "empty"
    if not _is_picture(data):
        return "not_an_image"
    return "truncated" if _is_cut(data) else None


def pixels(data: bytes) -> int:
    """Width times height as the header says; 0 where Pillow does not know the format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as picture:
                return picture.width * picture.height
    except Image.DecompressionBombError:
        return sys.maxsize
    except (OSError, ValueError, SyntaxError):
        return 0


def _is_picture(data: bytes) -> bool:
    if data.startswith(b"RIFF"):
        return data[8:12] == b"WEBP"
    return data.startswith(_SIGNATURES) or data[4:8] == b"ftyp"  # ISO media: AVIF, HEIC


def _is_cut(data: bytes) -> bool:
    if data.startswith(b"\xff\xd8"):
        # Entropy-coded data escapes 0xFF, so these two byte pairs are real markers. An embedded
        # thumbnail has its own end marker, hence "an end after the last scan", not "an end".
        return data.find(_JPEG_SCAN, max(data.rfind(_JPEG_END), 0)) >= 0
    if data.startswith(_PNG):
        return data.rfind(_PNG_END) < 0  # from the end, where it is
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"GIF8"):
        return b";" not in data[-16:]
    return False
