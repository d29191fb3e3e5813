"""The plan of a run: sizes, memory against a device, batches, hours and cost."""

from __future__ import annotations

import json
import math
import posixpath
from dataclasses import dataclass

import torch
import yaml

from smooth import store
from smooth.config import ConfigError, RunConfig
from smooth.plan import architecture
from smooth.plan.architecture import PlanError
from smooth.plan.memory import Footprint, Memory, footprint

GIB = 2**30
USABLE = 0.92  # of a device: the rest is for its context, workspaces, collectives and fragmentation
NOTICEABLE = 0.1  # of the total


@dataclass(frozen=True)
class Plan:
    """What a run needs."""

    config: RunConfig
    footprint: Footprint
    device: int | None  # bytes of one worker's device; None where none is seen or given
    latents: int | None  # rows; None where the latents are not there yet
    samples_per_second: float | None
    measured: bool  # that figure comes from a finished training
    dollars_per_hour: float | None  # of one worker

    @property
    def samples(self) -> int:
        """Samples of the whole training."""
        return self.config.train.steps * self.config.train.global_batch_size

    @property
    def hours(self) -> float | None:
        """Of training alone."""
        return None if self.samples_per_second is None else self.samples / self.samples_per_second / 3600

    @property
    def dollars(self) -> float | None:
        """Of all workers together."""
        if self.hours is None or self.dollars_per_hour is None:
            return None
        return self.hours * self.config.train.workers * self.dollars_per_hour

    def check_fits(self) -> None:
        """Refuse what the device can't hold.

        Raises:
            PlanError: it does not fit; the message names the knobs that are left.
        """
        need = self.footprint.memory.total
        if self.device is None or need <= USABLE * self.device:
            return
        ways = " or ".join(knobs(self.config, self.footprint.memory)) or "a larger one"
        raise PlanError(
            f"a worker needs {need / GIB:.1f} GiB, its device has {self.device / GIB:.1f} GiB of which "
            f"{USABLE:.0%} are counted on; try {ways}"
        )


def knobs(config: RunConfig, memory: Memory) -> list[str]:
    """What would lower the memory of a worker noticeably, cheapest first."""
    train = config.train
    large = {name for name, size in memory.parts().items() if size > NOTICEABLE * memory.total}
    micro = train.micro_batch_size
    smaller = max((size for size in range(1, micro) if micro % size == 0), default=None)
    states = large & {"optimizer", "average"}
    choices = {
        "train.precision=bf16": train.precision == "fp32" and train.gpus_per_worker > 0,
        "train.gradient_checkpointing=true": "activations" in large and not train.gradient_checkpointing,
        f"train.micro_batch_size={smaller}": "activations" in large and smaller is not None,
        "train.zero_stage=2": (states or "gradients" in large) and train.zero_stage < 2 and train.workers > 1,
        "train.zero_stage=3": "weights" in large and train.zero_stage == 2 and train.workers > 1,
        "train.offload_optimizer=true": states and train.zero_stage > 0 and not train.offload_optimizer,
        "train.optimizer=adamw_8bit": "optimizer" in large and train.zero_stage == 0 and train.optimizer == "adamw",
        "train.method=lora": train.method == "full",
    }
    return [knob for knob, helps in choices.items() if helps]


def plan(
    config: RunConfig,
    *,
    memory_gib: float | None = None,
    samples_per_second: float | None = None,
    dollars_per_hour: float | None = None,
) -> Plan:
    """Plan a run without touching its data or weights.

    Args:
        config: the run.
        memory_gib: of one worker's device; None takes the visible GPU's.
        samples_per_second: of the whole job; None takes a finished training's.
        dollars_per_hour: of one worker.

    Raises:
        PlanError: the base model's architecture is not known.
        ValueError: its UNet does not fit the config.
    """
    sizes = footprint(
        architecture.find(config.model.base, config.model.revision),
        config.train,
        max(config.latents.sizes, key=math.prod),
        cached_text=config.latents.cache_text,
    )
    rate = measured_rate(config) if samples_per_second is None else samples_per_second
    return Plan(
        config=config,
        footprint=sizes,
        device=_device(config) if memory_gib is None else int(memory_gib * GIB),
        latents=_latents(config),
        samples_per_second=rate,
        measured=samples_per_second is None,
        dollars_per_hour=dollars_per_hour,
    )


def _device(config: RunConfig) -> int | None:
    if config.train.gpus_per_worker and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return None


def _latents(config: RunConfig) -> int | None:
    try:
        return int(store.read_manifest(config.stage_dir("latents"))["rows"])
    except (store.ArtifactError, ConfigError, OSError, ImportError):
        return None  # not made yet, or out of this machine's reach


def measured_rate(config: RunConfig) -> float | None:
    """Samples a second of the newest finished training under ``storage.root`` that does the same work on as many."""
    try:
        fs, root = store.filesystem(store.join(config.storage.root, "train"))
        finished = sorted(fs.glob(f"{root}/*/{store.MANIFEST}"), key=fs.modified, reverse=True)
    except (OSError, ImportError):
        return None
    for path in finished:
        try:
            saved = RunConfig.parse(yaml.safe_load(fs.cat_file(f"{posixpath.dirname(path)}/run_config.yaml")))
        except ConfigError:  # of another version
            continue
        if _work(saved) == _work(config):
            return float(json.loads(fs.cat_file(path))["final"]["samples_per_second"])
    return None


def _work(config: RunConfig) -> tuple[object, ...]:
    """What decides how long a sample takes."""
    train = config.train
    keys = ("micro_batch_size", "workers", "gpus_per_worker", "zero_stage", "offload_optimizer", "precision", "method")
    variation = (train.variation.weight > 0, train.variation.estimator, train.variation.every)
    data = (config.model, config.latents.sizes, config.latents.cache_text)
    return *data, *(getattr(train, key) for key in keys), train.gradient_checkpointing, train.lora, variation
