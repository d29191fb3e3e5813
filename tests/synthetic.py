"""Finished artifacts made of random numbers, written through the project's own schema."""

import json
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from smooth import store
from smooth.config import resolve_model
from smooth.data import schema

SCALING_FACTOR = 0.5


def write_latents(
    folder: str | Path,
    *,
    rows: int = 50,
    files: int = 2,
    latent_shape: tuple[int, int, int] = (4, 16, 16),
    text_shape: tuple[int, int] = (24, 192),
    row_group_size: int = 16,
) -> Path:
    """A latents folder: means ~ N(0, 1), log-variances around -4, text ~ N(0, 1); caption i is "picture i"."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    layout = schema.latents_schema(latent_shape, text_shape)
    channels, height, width = latent_shape
    listed = []
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        moments = random.standard_normal((len(part), 2 * channels, height, width))
        moments[:, channels:] = 0.1 * moments[:, channels:] - 4
        columns = {
            "key": [f"{row:08d}" for row in part],
            "caption": [f"picture {row}" for row in part],
            "moments": moments.astype(np.float16),
            "text": random.standard_normal((len(part), *text_shape)).astype(np.float16),
            "crop": np.tile(np.array([0, 0, 64, 64], np.int32), (len(part), 1)),
            "original_size": np.full((len(part), 2), 64, np.int32),
        }
        name = f"part-{number:05d}.parquet"
        pq.write_table(schema.table(columns, layout), folder / name, row_group_size=row_group_size)
        listed.append({"name": name, "rows": len(part), "sha256": store.sha256(str(folder / name))})
    save_file({"text": torch.full(text_shape, 7.0, dtype=torch.float16)}, folder / schema.NULL_TEXT)
    manifest = {
        "stage": "latents",
        "rows": rows,
        "latent_shape": list(latent_shape),
        "text_shape": list(text_shape),
        "scaling_factor": SCALING_FACTOR,
        "files": listed,
    }
    store.write_manifest(str(folder), manifest)
    return folder


class Shapes(TypedDict):
    """What a base model's latents and text embeddings look like."""

    latent_shape: tuple[int, int, int]
    text_shape: tuple[int, int]


def shapes_of(base: str) -> Shapes:
    """Shapes of the pipeline folder (or built-in name) ``base``."""
    folder = Path(resolve_model(base))
    unet, text = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "text_encoder"))
    size = unet["sample_size"]
    return {
        "latent_shape": (unet["in_channels"], size, size),
        "text_shape": (text["max_position_embeddings"], unet["cross_attention_dim"]),
    }
