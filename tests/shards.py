"""Finished ingest folders made by hand: WebDataset shards with a manifest, as ingest leaves them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from smooth import store
from smooth.data import ledger

Member = Mapping[str, bytes]  # extension -> content


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sample(picture: bytes, caption: str, size: tuple[int, int] = (100, 128)) -> Member:
    """Members of a picture whose original was of ``size`` (height, width)."""
    facts = json.dumps({"original_height": size[0], "original_width": size[1]})
    return {"png": picture, "txt": caption.encode(), "json": facts.encode()}


def tar(samples: Mapping[str, Member], *, shuffled: bool = False) -> bytes:
    """A shard; ``shuffled`` puts pictures last to first, and a picture's members far from each other."""
    members = [(f"{key}.{extension}", data) for key, parts in samples.items() for extension, data in parts.items()]
    if shuffled:
        members = sorted(members, key=lambda member: member[0][::-1], reverse=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_ingest(folder: str, shards: Sequence[Mapping[str, Member]], *, shuffled: bool = False) -> dict[str, Any]:
    """Write shards of samples by key, and the manifest."""
    listed = []
    for number, samples in enumerate(shards):
        name, data = f"{number:05d}.tar", tar(samples, shuffled=shuffled)
        store.write_bytes(store.join(folder, name), data)
        sha256 = hashlib.sha256(data).hexdigest()
        listed.append({"name": name, "rows": len(samples), "bytes": len(data), "sha256": sha256})
    kept = sum(map(len, shards))
    facts = {"kept": kept, "encoding": "png", "image_size": 64, "pictures": [], "source": None, "licence": None}
    return store.write_manifest(folder, {**facts, "shards": listed, "digest": ledger.digest(listed)})
