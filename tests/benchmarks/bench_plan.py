"""Planned memory against measured peaks: a UNet of a quarter of SD 1.5's widths, LoRA and full fine-tune.

``python -m tests.benchmarks.bench_plan``. Each case trains a step of two micro-steps with the project's own engine
and step, in a process of its own; measured is the peak of its resident memory above what it was before the UNet.
The planner sees the same config, with what only a whole training has left out: the autoencoder, validation pictures.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from smooth.config import TrainConfig
from smooth.data.loader import Batch
from smooth.diffusion.variation import StepwiseVariation
from smooth.plan.architecture import Architecture, named
from smooth.plan.memory import account
from smooth.plan.trace import trace
from smooth.train.engine import start_engine
from smooth.train.step import TrainingStep
from tests.benchmarks.bench_variation import ARCHS, Memory
from tests.benchmarks.results import Result, report
from tests.numerics.networks import schedule, unet

TOLERANCE = 0.15
CASES: Mapping[str, Mapping[str, Any]] = {
    "LoRA": {"zero_stage": 0},
    "LoRA, ZeRO-2": {"zero_stage": 2},
    "LoRA, gradient checkpointing": {"zero_stage": 0, "gradient_checkpointing": True},
    "full": {"zero_stage": 0, "method": "full"},
    "full, ZeRO-2": {"zero_stage": 2, "method": "full"},
    "full, ZeRO-3": {"zero_stage": 3, "method": "full"},
    "full, EMA, gradient checkpointing": {
        "zero_stage": 0,
        "method": "full",
        "ema_decay": 0.999,
        "gradient_checkpointing": True,
    },
}


@dataclass(frozen=True)
class Case:
    """What a child trains."""

    arch: str
    size: int  # of the latents
    config: TrainConfig

    @classmethod
    def of(cls, name: str, arch: str, size: int) -> Case:
        """A case by its name."""
        config = TrainConfig(steps=1, global_batch_size=2, micro_batch_size=1, workers=1, **CASES[name])
        return cls(arch, size, config)

    def network(self) -> Any:
        """The UNet."""
        arch = ARCHS[self.arch]
        return unet(arch.unet, text_width=arch.text, groups=arch.groups)

    def batch(self) -> Batch:
        """A sample."""
        draw = torch.Generator().manual_seed(0)
        latents, noise, direction = torch.randn(3, 1, 4, self.size, self.size, generator=draw)
        text = torch.randn(1, 77, ARCHS[self.arch].text, generator=draw)
        return Batch(latents, noise, torch.tensor([500]), direction / (2 * self.size), text, torch.tensor([0]))


def planned(case: Case) -> float:
    """MiB of the plan without the validation pictures: with checkpointing they take most, and none are drawn here."""
    with torch.device("meta"):
        described = Architecture(dict(case.network().config), named("sd15").vae, named("sd15").text_encoders)
    side = 8 * case.size
    counted = trace(described, case.config, (side, side), 1.0)  # of one worker, who keeps all gradients
    batch = sum(value.nbytes for value in vars(case.batch()).values() if isinstance(value, Tensor))
    return account(replace(counted, validation=0), case.config, other_models=0, batch=batch).total / 2**20


def serve(connection: Connection, case: Case) -> None:
    """A child: train, and send the peak in MiB."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        train(Case("small", 8, case.config))  # libraries and their kernels are loaded once, whatever the model
        memory = Memory("cpu")
        train(case)
        connection.send(memory.peak())
        dist.destroy_process_group()


def train(case: Case) -> None:
    """All steps of a case; the peak counts from after the start."""
    engine = start_engine(case.network(), case.config, 0, torch.device("cpu"))
    step = TrainingStep(engine, schedule(), StepwiseVariation(case.config.variation))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory is the present one again
    for _ in range(case.config.steps):
        step([case.batch()] * case.config.accumulation)


def measured(case: Case) -> float:
    """MiB of a child."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    child = context.Process(target=serve, args=(theirs, case))
    child.start()
    peak: float = mine.recv()
    child.join()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=list(ARCHS), default="quarter")
    parser.add_argument("--size", type=int, default=64, help="of the latents: pixels / 8 (64)")
    parser.add_argument("--case", choices=list(CASES), action="append", help="all")
    given = parser.parse_args()
    # What is freed goes back to the system at once: resident memory is then what tensors hold.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**17)
    results = []
    for name in given.case or CASES:
        case = Case.of(name, given.arch, given.size)
        values = {"planned": planned(case), "measured": measured(case)}
        ratio = values["planned"] / values["measured"]
        print(f"{name:36} " + "  ".join(f"{key} {value:7.0f} MiB" for key, value in values.items()) + f"  {ratio:.3f}")
        results += [Result(f"{name}: {key}", value, "MiB") for key, value in values.items()]
        results.append(Result(f"{name}: |planned / measured - 1|", abs(ratio - 1), "", f"<= {TOLERANCE}"))
    report(f"plan-{given.arch}", results)


if __name__ == "__main__":
    main()
