"""Finished artifacts made of random numbers, written through the project's own schema."""

import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from smooth import store
from smooth.config import resolve_model
from smooth.data import parts, schema

SCALING_FACTOR = 0.5


def write_latents(
    folder: str | Path,
    *,
    rows: int = 50,
    files: int = 2,
    latent_shape: tuple[int, int, int] = (4, 16, 16),
    wide: tuple[int, int, int] | None = None,
    text_shape: tuple[int, ...] = (24, 192),
    captions: int | None = None,
    texts: NDArray[Any] | None = None,
) -> Path:
    """A latents folder: means ~ N(0, 1), log-variances around -4, text ~ N(0, 1) where no ``texts`` are given.

    Row i has the caption "picture i", counted anew after ``captions`` of them; the last of ``texts`` is the
    empty prompt's. Each third row has latents of the shape ``wide``, where it is given.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    if texts is None:
        kind, scale = (np.int32, 9) if len(text_shape) == 1 else (np.float16, 1)
        drawn = scale * random.standard_normal((captions or rows, *text_shape))
        texts = np.concatenate([drawn, np.full((1, *text_shape), 7)]).astype(kind)
    texts, null_text = texts[:-1], texts[-1]
    shapes = [latent_shape, *([wide] if wide else [])]
    listed = []
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        distinct, text_row = np.unique(part % len(texts), return_inverse=True)
        sizes = (part % 3 == 2).astype(int) if wide else np.zeros(len(part), int)
        of_texts = {"caption": [f"picture {caption}" for caption in distinct], "text": texts[distinct]}
        layouts = [schema.rows_schema(shape) for shape in shapes], schema.texts_schema(text_shape)
        with parts.writing(str(folder), str(number), *layouts) as files_of_part:
            for size, shape in enumerate(shapes):
                chosen = sizes == size
                files_of_part.add(
                    files_of_part.rows[size], _rows(random, part[chosen], text_row[chosen], shape, len(texts))
                )
            files_of_part.add(files_of_part.texts, of_texts)
        listed.append({**(parts.read_facts(str(folder), str(number)) or {}), "shard": f"{number:05d}.tar"})
    save_file({"text": null_text}, folder / schema.NULL_TEXT)
    manifest = {
        "stage": "latents",
        "ingest": "synthetic",
        "rows": rows,
        "sizes": [[4 * side for side in shape[1:]] for shape in shapes],
        "latent_shapes": [list(shape) for shape in shapes],
        "text_shape": list(text_shape),
        "scaling_factor": SCALING_FACTOR,
        "files": listed,
    }
    store.write_manifest(str(folder), manifest)
    return folder


def _rows(
    random: np.random.Generator, numbers: NDArray[Any], text_row: NDArray[Any], shape: tuple[int, int, int], texts: int
) -> dict[str, Any]:
    channels, height, width = shape
    moments = random.standard_normal((len(numbers), 2 * channels, height, width))
    moments[:, channels:] = 0.1 * moments[:, channels:] - 4
    return {
        "key": [f"{number:08d}" for number in numbers],
        "caption": [f"picture {number % texts}" for number in numbers],
        "moments": moments.astype(np.float16),
        "text_row": text_row,
        "crop": np.tile(np.array([0, 0, 64, 64], np.int32), (len(numbers), 1)),
        "flipped": [False] * len(numbers),
        "original_size": np.full((len(numbers), 2), 64, np.int32),
    }


def repeat_parts(folder: str | Path, times: int) -> None:
    """Make a latents folder ``times`` as long: its manifest lists each part as often."""
    manifest = store.read_manifest(str(folder))
    manifest |= {"files": times * manifest["files"], "rows": times * manifest["rows"]}
    store.write_manifest(str(folder), manifest)


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
