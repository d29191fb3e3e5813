"""Latents: each shard becomes a part of VAE posterior moments and text embeddings, through Ray Data.

The shard is the unit of work, of resume and of reuse. An actor reads it, encodes it and writes its
part; this process only hands out shards, follows the count and writes the manifest. So a part's bytes
don't depend on how many actors worked, and what is finished stays finished whoever is killed.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import ray

from smooth import cluster, stages, store
from smooth.config import RunConfig, Size
from smooth.data import parts, pictures, schema
from smooth.data.encoder import Encoder
from smooth.data.encoding import PartEncoder, Plan
from smooth.data.shards import Shard
from smooth.data.tally import Tally, reported

TRIES = 3  # of a shard: Ray itself would hand one that kills its actor to new actors for ever


class LatentsError(RuntimeError):
    """The latents can't be made from these shards or with this model."""


def run(config: RunConfig) -> dict[str, Any]:
    """Encode the ingested pictures of ``config`` and return the stage's manifest.

    A rerun encodes what is missing: after an interruption, or after ingest has kept more pictures. Parts that
    another latents folder under the same root holds are copied.

    Raises:
        ArtifactError: ingest has not finished, or shards are not what its manifest says; the others are encoded.
        ValueError: ``latents.image_size`` or one of ``latents.buckets`` does not fit the VAE.
        LatentsError: not one picture could be encoded.
    """
    folder = config.stage_dir("latents")
    if stages.status("latents", config) == "complete":
        return store.read_manifest(folder)
    started = time.monotonic()
    source = config.stage_dir("ingest")
    ingested = store.read_manifest(source)
    encoder = Encoder(config.model.base, config.model.revision, config.latents.cache_text)
    no_text = encoder.no_text()
    text_shape, pooled_width = no_text["text"].shape, no_text["pooled"].size if "pooled" in no_text else 0
    sizes = config.latents.sizes
    latent_shapes = tuple(encoder.latent_shape(*size) for size in sizes)
    encoder.latent_shape(config.latents.image_size, config.latents.image_size)  # what evaluate and register sample
    plan = Plan(source, folder, ingested["encoding"], config.latents, latent_shapes, text_shape, pooled_width)
    hashes = {**encoder.hashes(), "preprocessing": pictures.preprocessing(config.latents)}
    named = [(parts.identity(hashes, shard.sha256), shard) for shard in Shard.of(ingested)]
    shards = dict(named)
    null_bytes = _safetensors(no_text)
    store.write_bytes(store.join(folder, schema.NULL_TEXT), null_bytes)

    done = parts.finished(folder, shards)
    done |= parts.copy_from_siblings(folder, shards.keys() - done.keys())
    missing = {part: shard for part, shard in shards.items() if part not in done}
    if missing:
        print(f"latents: {len(done)} of {len(shards)} shards are there already", flush=True)
        _encode(config, plan, missing, sum(facts["pictures"] for facts in done.values()))
        done |= parts.finished(folder, missing)
    files = [{**done[part], "shard": shard.name} for part, shard in named]
    manifest = {
        "stage": "latents",
        "fingerprint": config.fingerprint("latents"),
        "seconds": round(time.monotonic() - started, 2),
        "pictures": [],
        **_counts(files, ingested["kept"], sizes),
        "ingest": ingested["digest"],
        "sizes": [list(size) for size in sizes],
        "latent_shapes": [list(shape) for shape in latent_shapes],
        "text_shape": list(text_shape),
        "pooled_width": pooled_width,
        "scaling_factor": encoder.scaling_factor,
        **hashes,
        "null_text": hashlib.sha256(null_bytes).hexdigest(),
        "files": files,
    }
    store.write_manifest(folder, manifest)
    parts.remove_others(folder, files)
    return manifest


def _counts(files: list[dict[str, Any]], kept: int, sizes: Sequence[Size]) -> dict[str, Any]:
    """What the manifest says of rows and bytes.

    Raises:
        LatentsError: no row came out, or pictures got lost.
    """
    failed: Counter[str] = Counter()
    for facts in files:
        failed.update(facts["failed"])
    counts = [(facts["rows"], facts["texts"]["rows"], facts["pictures"]) for facts in files]
    rows, texts, seen = (sum(column) for column in zip(*counts, strict=True))
    if not rows:
        raise LatentsError(f"none of {kept} pictures could be encoded: {dict(failed)}")
    if seen != kept:
        raise LatentsError(f"{kept} pictures went in, {seen} came out")
    bytes_per_row = parts.bytes_per_row(files)
    summary: dict[str, Any] = {"rows": rows, "texts": texts}
    for number, (height, width) in enumerate(sizes if len(sizes) > 1 else ()):
        summary[f"rows of {height}x{width}"] = sum(facts["latents"][number]["rows"] for facts in files)
    summary |= {f"bytes per row: {name}": size for name, size in bytes_per_row.items()}
    summary |= {f"failed: {cause}": count for cause, count in failed.items()}
    return {
        "summary": summary,
        "rows": rows,
        "texts": texts,
        "failed": dict(failed),
        "bytes_per_row": bytes_per_row,
    }


class Worker:
    """The Ray Data actor: holds the networks and encodes the shards it is handed."""

    def __init__(self, config: RunConfig, plan: Plan, tally: Any) -> None:
        model, settings = config.model, config.latents
        cuda = settings.gpus_per_actor > 0
        encoder = Encoder(model.base, model.revision, settings.cache_text, batch_size=settings.batch_size, cuda=cuda)
        self.encode = PartEncoder(plan, encoder)
        self.tally = tally

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[str]]:
        """Encode the shards of a batch; return what is wrong with each, empty where nothing is."""
        columns = (batch[name].tolist() for name in ("part", "name", "rows", "sha256"))
        return {"error": [self._encode(part, Shard(*shard)) for part, *shard in zip(*columns, strict=True)]}

    def _encode(self, part: str, shard: Shard) -> str:
        def tell(done: int, failed: int) -> None:
            self.tally.put.remote(part, done, failed)

        # An actor before this one may have died between its last write and its answer.
        if facts := parts.finished(self.encode.plan.folder, [part]).get(part):
            tell(facts["pictures"], sum(facts["failed"].values()))
            return ""
        if ray.get(self.tally.begin.remote(part)) > TRIES:
            return f"{shard.name} has ended its actor {TRIES} times; see Ray's logs for how (memory, a decoder's crash)"
        try:
            self.encode(shard, part, tell)
        except store.ArtifactError as error:
            return str(error)
        return ""


def _encode(config: RunConfig, plan: Plan, missing: dict[str, Shard], done: int) -> None:
    """Encode the missing parts in a pool of actors; ``done`` pictures are finished already.

    Raises:
        ArtifactError: some shards are not what the manifest of ingest says; all others are encoded.
    """
    cluster.connect()
    settings = config.latents
    items = [{"part": part, **vars(shard)} for part, shard in missing.items()]
    tally = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tally).remote()
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Worker,
        fn_constructor_args=(config, plan, tally),
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=settings.gpus_per_actor,
        # One shard at an actor, none in line: a shard takes minutes, and the last ones shall not wait for each other.
        compute=ray.data.ActorPoolStrategy(size=min(settings.actors, len(items)), max_tasks_in_flight_per_actor=1),
    )
    data.context.enable_progress_bars = False
    total = done + sum(shard.rows for shard in missing.values())
    broken: list[str] = []
    with reported(lambda: ray.get(tally.total.remote()), done, total):
        for batch in data.iter_batches(batch_size=None, batch_format="numpy"):
            broken += [error for error in batch["error"].tolist() if error]
    if broken:
        raise store.ArtifactError(f"{len(broken)} of {len(missing)} shards can't be encoded: " + "; ".join(broken[:3]))


def _safetensors(tensors: dict[str, npt.NDArray[Any]]) -> bytes:
    from safetensors.numpy import save

    data: bytes = save(tensors)
    return data
