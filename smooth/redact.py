"""What a page or a log may show: config values without the credentials in their URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_PARAM_LENGTH = 500

# user:password@ (a secret may hold slashes, S3's do), or a lone token@, between :// and the host.
_USER_INFO = re.compile(r"://(?:[^\s/@:]*:[^\s@]*|[^\s/@:]+)@")
_SECRET_QUERY = re.compile(r"(?i)([?&][\w.-]*(?:token|key|secret|sig|signature|password|credential)[\w.-]*=)[^&\s\"']+")


def redact(text: str) -> str:
    """Replace credentials inside URLs (``s3://key:secret@bucket``, ``?token=...``) by ``***``."""
    return _SECRET_QUERY.sub(r"\1***", _USER_INFO.sub("://***@", text))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested config values as ``{"train.lora.rank": "8"}``, secrets redacted, each at most 500 characters."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = redact(str(value))[:MAX_PARAM_LENGTH]
    return flat
