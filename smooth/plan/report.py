"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator

from smooth.plan.estimate import GIB, USABLE, Plan

NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "average": "EMA",
    "activations": "activations",
    "batch": "latents and text",
    "other_models": "VAE, text encoder",
}


def lines(plan: Plan) -> Iterator[str]:
    """The plan, line by line."""
    train, sizes = plan.config.train, plan.footprint
    what = f"LoRA of rank {train.lora.rank}" if train.method == "lora" else "full fine-tune"
    sharding = f"ZeRO-{train.zero_stage}" if train.zero_stage else "no sharding"
    yield f"{plan.config.preset}: {plan.config.model.base}, {what}, {train.precision}, {sharding}"
    share = sizes.trained / sizes.parameters
    counts = f"{sizes.parameters / 1e6:,.1f} million in the UNet, {sizes.trained / 1e6:,.2f} million trained"
    yield f"parameters   {counts} ({share:.2%})"
    yield from _batch(plan)
    yield from _memory(plan)
    yield from _time(plan)


def _batch(plan: Plan) -> Iterator[str]:
    train = plan.config.train
    yield (
        f"batch        {train.global_batch_size} = {train.micro_batch_size} a worker x {train.workers} workers "
        f"x {train.accumulation} accumulated"
    )
    epochs = (
        "no latents yet" if plan.latents is None else f"{plan.samples / plan.latents:.1f} epochs of {plan.latents:,}"
    )
    yield f"samples      {plan.samples:,} in {train.steps:,} steps ({epochs})"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.footprint.memory
    yield f"memory       of one worker, at its worst in the {memory.moment}"
    for name, size in memory.parts().items():
        if size:
            yield f"  {NAMES[name]:<18} {size / GIB:9.3f} GiB"
    yield f"  {'together':<18} {memory.total / GIB:9.3f} GiB"
    if memory.host:
        yield f"  {'in CPU memory':<18} {memory.host / GIB:9.3f} GiB"
    if plan.device is None:
        yield "  no GPU to judge it by; give --memory-gib"
    else:
        spare = USABLE * plan.device - memory.total
        verdict = (
            f"fits, {spare / GIB:.1f} GiB spare" if spare >= 0 else f"does not fit, {-spare / GIB:.1f} GiB too much"
        )
        yield f"  a device of {plan.device / GIB:.1f} GiB: {verdict}"


def _time(plan: Plan) -> Iterator[str]:
    if plan.samples_per_second is None:
        yield "time         unknown: no training like it has finished here; give --samples-per-second"
        return
    source = "as a finished training" if plan.measured else "as given"
    yield f"time         {plan.hours:,.2f} h at {plan.samples_per_second:.4g} samples/s, {source}"
    if plan.dollars is not None:
        yield f"cost         {plan.dollars:,.2f} dollars for {plan.config.train.workers} workers"
