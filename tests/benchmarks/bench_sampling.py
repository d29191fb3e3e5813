"""Sampling: one evaluation actor against a bare loop of the diffusers pipeline, and two actors against one.

``python -m tests.benchmarks.bench_sampling``. The actors do what the stage's do, and the stage's own code hands out
their blocks and keeps what comes back. The bare loop calls the pipeline on the same batches, with noises and prompts at
hand, and throws its pictures away. One thread each; start-up and a first batch are not timed.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray.util import ActorPool

from smooth.config import RunConfig
from smooth.evaluate import networks
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.sampling import Sampling
from smooth.evaluate.subjects import Subject
from smooth.evaluate.worker import Block, Model, Painter
from tests.benchmarks.actors import against_bare_loop
from tests.benchmarks.results import report
from tests.protocols import protocol


class Actor(Painter):
    """The stage's painter, and the bare loop on a pipeline of its own."""

    def __init__(self, subjects: dict[Model, Subject], protocol: Protocol) -> None:
        import torch

        from smooth.models.pipeline import load_pipeline

        torch.set_num_threads(1)
        contents = [networks.contents(network) for network in protocol.networks]
        super().__init__(subjects, protocol, cuda=False, contents=contents)
        self._bare: Any = load_pipeline(subjects["base"].base)

    def bare(self, sizes: list[int]) -> None:
        """Batches of ``sizes`` pictures by the diffusers pipeline, and nothing else."""
        import torch

        protocol = self._protocol
        for size in sizes:
            self._bare(
                prompt=list(protocol.prompts[:1]) * size,
                latents=torch.randn(size, *self._shape),
                height=protocol.image_size,
                width=protocol.image_size,
                num_inference_steps=protocol.steps,
                guidance_scale=protocol.guidance,
                output_type="np",
            )

    def paint_one(self, batch: int) -> None:
        """A first batch, not timed."""
        self.paint("base", Block("frames", 0, batch))
        self.bare([batch])


def protocol_of(config: RunConfig, prompts: int) -> Protocol:
    """Interpolations alone, as the preset samples them."""
    evaluate = config.evaluate
    return protocol(
        prompts=("a red heart",) * prompts,
        picture_prompts=("a red heart",) * evaluate.batch_size,
        frames=evaluate.frames,
        seed=config.seed,
        image_size=config.latents.image_size,
        steps=evaluate.steps,
        guidance=evaluate.guidance,
        networks=(networks.efficientnet(config.latents.image_size),),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prompts",
        type=int,
        default=8,
        help="interpolations a round, beside one batch of single pictures with their features",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="tiny")
    args = parser.parse_args()
    config = RunConfig.load(args.preset)
    batch = config.evaluate.batch_size
    sampled = protocol_of(config, args.prompts)
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.WARNING)
    with tempfile.TemporaryDirectory() as root:
        base = Subject(config.model.base, config.model.revision)
        subjects: dict[Model, Subject] = {"base": base, "smooth": base}
        actor = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(Actor)
        actors = [actor.remote(subjects, sampled) for _ in range(2)]
        for one in actors:
            ray.get(one.paint_one.remote(batch))
        pictures = args.prompts * sampled.frames + batch
        sizes = [batch] * (pictures // batch) + [pictures % batch] * bool(pictures % batch)

        folders = (str(Path(root, str(number))) for number in count())

        def sample(number: int) -> None:
            Sampling(sampled, {"base": next(folders)}, batch).run(lambda: ActorPool(actors[:number]), None)

        results = against_bare_loop(
            lambda: ray.get(actors[0].bare.remote(sizes)), sample, pictures=pictures, rounds=args.rounds, goal=">= 0.95"
        )
    ray.shutdown()
    report("sampling", results)


if __name__ == "__main__":
    main()
