"""What a sweep trains: a grid of λ, LoRA rank and lazy k, and any other changes, each on every seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from smooth.config import ConfigError, RunConfig

BASE, CONTROL = "base", "λ = 0, control"


@dataclass(frozen=True)
class Arm:
    """One way to train, by its config on each seed."""

    name: str
    configs: tuple[RunConfig, ...]


def arms(
    preset: str,
    overrides: Sequence[str],
    *,
    weights: Sequence[float],
    ranks: Sequence[int],
    every: Sequence[int],
    also: Sequence[str],
    seeds: Sequence[int],
) -> list[Arm]:
    """All arms, the control (λ = 0 at the preset's rank) first. Every config is checked before anything is trained.

    Args:
        preset: that all arms start from.
        overrides: ``key=value`` for all arms.
        weights: λ of the grid; 0 is the control, which is always there.
        ranks: of the LoRA; none leaves the preset's, as for ``every``.
        every: lazy k, the regularizer on each k-th micro-step with k times the weight.
        also: arms beside the grid, each of one or more ``key=value`` parted by blanks.
        seeds: of every arm; the same seed is the same samples, noises and prompts in all of them.

    Raises:
        ConfigError: no seed, two the same, a config that can't be, or an arm that differs in more than its training.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds={list(seeds)}: give one or more, each once")
    lora = RunConfig.load(preset, overrides).train.lora
    found = {CONTROL: ["train.variation.weight=0"]}
    grid = itertools.product([weight for weight in weights if weight != 0], ranks or (None,), every or (None,))
    for weight, rank, k in grid:
        parts = {"λ": weight, "rank": rank, "k": k}
        keys = ("train.variation.weight", "train.lora.rank", "train.variation.every")
        name = ", ".join(f"{part} = {value:g}" for part, value in parts.items() if value is not None)
        values = zip(keys, parts.values(), strict=True)
        found[name] = [f"{key}={value}" for key, value in values if value is not None]
        if rank is not None:  # the update's scale is alpha / rank: kept, so that rank alone differs
            found[name].append(f"train.lora.alpha={rank * lora.alpha / lora.rank:g}")
    found |= {change: change.split() for change in also}
    made: list[Arm] = []
    seen: set[str] = set()
    for name, changes in found.items():
        configs = tuple(RunConfig.load(preset, [*overrides, *changes, f"seed={seed}"]) for seed in seeds)
        _check_only_training_differs(name, configs[0], made)
        if configs[0].fingerprint("train") not in seen:  # k = 1 named and left out, say
            made.append(Arm(name, configs))
        seen.add(configs[0].fingerprint("train"))
    return made


def _check_only_training_differs(name: str, config: RunConfig, others: Sequence[Arm]) -> None:
    if not others:
        return
    first = others[0].configs[0]
    if config.fingerprint("latents") != first.fingerprint("latents") or config.evaluate != first.evaluate:
        raise ConfigError(
            f"also={name!r} changes more than train.*: what is trained on other data or measured otherwise does not "
            "compare; give such a change to all arms, as overrides"
        )
