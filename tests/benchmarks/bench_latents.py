"""Latents: one actor against a bare loop of the networks over tensors in memory, and two actors against one.

``python -m tests.benchmarks.bench_latents``. An actor does what the stage's does: it hashes, reads and decodes a
shard, encodes it and writes its part. One thread each; start-up, imports and a first shard are not timed.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.util import ActorPool

from smooth.config import LatentsConfig, RunConfig
from smooth.data import openmoji
from smooth.data.shards import Shard
from tests.benchmarks.actors import against_bare_loop
from tests.benchmarks.results import report
from tests.shards import png, sample, write_ingest


class Actor:
    """The stage's encoder of shards, and the bare loop on the same networks."""

    def __init__(self, base: str, source: str, encoding: str, settings: LatentsConfig) -> None:
        import torch

        from smooth.data.encoder import Encoder
        from smooth.data.encoding import PartEncoder, Plan

        torch.set_num_threads(1)
        self.encoder = Encoder(base, None, settings.cache_text, batch_size=settings.batch_size)
        shapes = tuple(self.encoder.latent_shape(*size) for size in settings.sizes)
        self.plan = Plan(source, "", encoding, settings, shapes, self.encoder.no_text()["text"].shape)
        self.make = PartEncoder
        self.tensors: list[tuple[Any, Any]] = []

    def load(self, shards: list[Shard]) -> int:
        """Decode the pictures of shards into batches of tensors, and tokenize their captions."""
        import torch

        from smooth.data import pictures
        from smooth.data.shards import ShardReader

        settings, tokenizer = self.plan.settings, self.encoder.pipeline.tokenizer
        samples = [
            reader.read(key)
            for reader in (ShardReader(self.plan.source, shard, self.plan.encoding) for shard in shards)
            for key in reader.keys
        ]
        for first in range(0, len(samples), settings.batch_size):
            batch = samples[first : first + settings.batch_size]
            pixels = [pictures.views(one.picture, one.key, one.original_size, settings)[0].pixels for one in batch]
            scaled = torch.stack([torch.from_numpy(one.copy()) for one in pixels]).permute(0, 3, 1, 2) / 127.5 - 1
            ids = tokenizer([one.caption for one in batch], padding="max_length", return_tensors="pt").input_ids
            self.tensors.append((scaled, ids))
        return len(samples)

    def bare(self) -> None:
        """`vae.encode` and the text encoder over the tensors, and nothing else."""
        import torch

        with torch.inference_mode():
            for pixels, ids in self.tensors:
                _ = self.encoder.pipeline.vae.encode(pixels).latent_dist.mean
                _ = self.encoder.pipeline.text_encoder(ids)[0]

    def encode(self, folder: str, shard: Shard) -> None:
        """One shard into one part."""
        from dataclasses import replace

        self.make(replace(self.plan, folder=folder), self.encoder)(shard, shard.name, lambda *_: None)


def write_shards(folder: str, pictures: int, shards: int, size: int) -> list[Shard]:
    """Drawings with captions that all differ, so that no text is saved."""
    drawings = openmoji.drawings()
    each = pictures // shards

    def of(number: int) -> Any:
        drawing = drawings[number % len(drawings)]
        return sample(
            png(openmoji.render(drawing, size, openmoji.Style.draw(drawing.key, number))), f"picture {number}"
        )

    firsts = range(0, each * shards, each)
    listed = [{f"{number:09d}": of(number) for number in range(first, first + each)} for first in firsts]
    return Shard.of(write_ingest(folder, listed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4096, help="shards of whole batches, as large ones nearly are")
    parser.add_argument("--shards", type=int, default=8, help="an even number")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="tiny")
    args = parser.parse_args()
    config = RunConfig.load(args.preset)
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.WARNING)
    with tempfile.TemporaryDirectory() as root:
        source = str(Path(root, "ingest"))
        shards = write_shards(source, args.pictures, args.shards, config.latents.image_size)
        actor = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(Actor)
        actors = [actor.remote(config.model.base, source, "png", config.latents) for _ in range(2)]
        pictures = ray.get(actors[0].load.remote(shards))
        folder = str(Path(root, "latents"))
        ray.get([one.encode.remote(folder, shards[0]) for one in actors[:1]])
        ray.get([one.encode.remote(folder, shards[0]) for one in actors[1:]])

        def encode(number: int) -> None:
            queue = ActorPool(actors[:number])
            for _ in queue.map_unordered(lambda one, shard: one.encode.remote(folder, shard), shards):
                pass

        results = against_bare_loop(
            lambda: ray.get(actors[0].bare.remote()), encode, pictures=pictures, rounds=args.rounds, goal=">= 0.9"
        )
    ray.shutdown()
    report("latents", results)


if __name__ == "__main__":
    main()
