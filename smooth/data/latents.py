"""Latents: shards become Parquet of VAE posterior moments and text embeddings, through Ray Data.

Read tasks stream shards in key order, an actor pool encodes, and this process writes the rows as they
arrive, in order. So files and their bytes don't depend on how many actors worked or which was faster.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import ray

from smooth import cluster, progress, store
from smooth.config import LatentsConfig, RunConfig
from smooth.data import schema, shards
from smooth.data.encoder import Encoder
from smooth.data.writer import PartWriter

ROWS_PER_BATCH = 256  # rows that travel together to the writer
PROGRESS_LINES = 40


class LatentsError(RuntimeError):
    """The latents can't be made from these shards or with this model."""


def run(config: RunConfig) -> dict[str, Any]:
    """Encode the ingested pictures of ``config`` and return the stage's manifest.

    A rerun after a crash starts the folder anew.

    Raises:
        ArtifactError: ingest has not finished, or a shard is not what its manifest says.
        ValueError: ``latents.image_size`` does not fit the VAE.
        LatentsError: not one picture could be encoded.
    """
    folder = config.stage_dir("latents")
    if store.is_complete(folder):
        return store.read_manifest(folder)
    started = time.monotonic()
    source = config.stage_dir("ingest")
    ingested = store.read_manifest(source)
    _clear(folder)
    encoder = Encoder(config.model.base, config.model.revision, config.latents.cache_text)
    latent_shape = encoder.latent_shape(config.latents.image_size)
    null_text = encoder.texts([""])[0]
    text_shape = null_text.shape
    store.write_bytes(store.join(folder, schema.NULL_TEXT), _safetensors(null_text))

    cluster.connect()
    writer = PartWriter(folder, schema.latents_schema(latent_shape, text_shape), config.latents.rows_per_file)
    failed: Counter[str] = Counter()
    captions: set[str] = set()
    for batch in _encoded(config, source, ingested, started):
        good = batch["failure"] == ""
        failed.update(str(cause) for cause in batch["failure"][~good])
        rows = {name: values[good] for name, values in batch.items() if name != "failure"}
        captions.update(rows["caption"])
        writer.add(rows)
    files = writer.close()
    written = sum(file["rows"] for file in files)
    if not written:
        raise LatentsError(f"none of {ingested['kept']} pictures could be encoded: {dict(failed)}")
    if written + failed.total() != ingested["kept"]:
        raise LatentsError(f"{ingested['kept']} pictures went in, {written} + {failed.total()} failed came out")
    seconds = time.monotonic() - started
    summary: dict[str, Any] = {
        "rows": written,
        "distinct captions": len(captions),
        "latent shape": "x".join(map(str, latent_shape)),
        "text shape": "x".join(map(str, text_shape)),
        "pictures per second": round(ingested["kept"] / seconds, 1),
    }
    summary |= {f"failed: {cause}": count for cause, count in failed.items()}
    manifest = {
        "stage": "latents",
        "fingerprint": config.fingerprint("latents"),
        "seconds": round(seconds, 2),
        "summary": summary,
        "pictures": [],
        "rows": written,
        "failed": dict(failed),
        "captions": len(captions),
        "latent_shape": list(latent_shape),
        "text_shape": list(text_shape),
        "scaling_factor": encoder.scaling_factor,
        **encoder.hashes(),
        "preprocessing": _preprocessing(config.latents),
        "files": files,
    }
    return store.write_manifest(folder, manifest)


def _encoded(
    config: RunConfig, source: str, ingested: dict[str, Any], started: float
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Stream the encoded rows of all shards, in the order of their keys, with progress lines."""
    settings = config.latents
    items = [{"shard": item["name"], "rows": item["rows"]} for item in ingested["shards"] if item["rows"]]
    data = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .flat_map(
            shards.Reader(source, ingested["encoding"], settings.image_size),
            num_cpus=0,  # so that the actors may take all CPUs; the pool's size limits the readers instead
            compute=ray.data.TaskPoolStrategy(size=min(len(items), settings.actors + 1)),
        )
        .map_batches(
            Encoder,
            fn_constructor_args=(config.model.base, config.model.revision, settings.cache_text),
            fn_constructor_kwargs={"batch_size": settings.batch_size, "cuda": settings.gpus_per_actor > 0},
            batch_size=settings.batch_size,
            batch_format="numpy",
            num_cpus=1,
            num_gpus=settings.gpus_per_actor,
            compute=ray.data.ActorPoolStrategy(size=settings.actors),
        )
    )
    data.context.execution_options.preserve_order = True
    data.context.enable_progress_bars = False
    total, done, lines = ingested["kept"], 0, 0
    progress.report("latents", 0, total, "pictures")
    batches: Iterator[Any] = iter(data.iter_batches(batch_size=ROWS_PER_BATCH, batch_format="numpy"))
    for batch in batches:
        yield batch
        done += len(batch["key"])
        if done * PROGRESS_LINES // total > lines:
            lines = done * PROGRESS_LINES // total
            rate = done / (time.monotonic() - started)
            progress.report("latents", done, total, "pictures", pictures_per_second=round(rate, 1))


def _preprocessing(config: LatentsConfig) -> str:
    return hashlib.sha256(
        json.dumps({"image_size": config.image_size, "recipe": shards.RECIPE, "cache_text": config.cache_text}).encode()
    ).hexdigest()[:16]


def _clear(folder: str) -> None:
    fs, inner = store.filesystem(folder)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)


def _safetensors(text: npt.NDArray[Any]) -> bytes:
    from safetensors.numpy import save

    data: bytes = save({"text": text})
    return data
