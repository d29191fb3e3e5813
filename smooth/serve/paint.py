"""Orders to pictures, a batch at a time: each picture is the one that ``smooth generate`` paints of its order alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from smooth.diffusion import sampler
from smooth.edit import media
from smooth.edit.generate import check, image_size, noise
from smooth.serve.order import Limits, Order, OrderError

if TYPE_CHECKING:
    from smooth.serve.versions import Version

PIPELINES_MULTIPLE = 8  # diffusers' own, whatever the VAE's factor is


def check_order(pipeline: Any, order: Order, limits: Limits) -> None:
    """Refuse what this model can't paint.

    Raises:
        OrderError: 422, steps or a size that the model has not.
    """
    try:
        check(pipeline, order.steps, order.guidance, order.prompt, order.negative)
    except ValueError as error:
        raise OrderError(422, str(error)) from None
    own = image_size(pipeline)
    size, most = order.size or own, limits.size or own
    multiple = math.lcm(PIPELINES_MULTIPLE, int(pipeline.vae_scale_factor))
    if size > most or size % multiple:
        raise OrderError(422, f"size={size}: give a multiple of {multiple} from {multiple} to {most} pixels")


def paint(pipeline: Any, orders: Sequence[Order]) -> npt.NDArray[np.uint8]:
    """Paint B orders of one group together.

    Returns:
        (B, H, W, 3) uint8.
    """
    first = orders[0]
    return sampler.sample(
        pipeline,
        _embed(pipeline, orders),
        torch.stack([noise(pipeline, order.seed, order.size) for order in orders]),
        steps=first.steps,
        guidance=first.guidance,
    )


def png(version: Version, order: Order, picture: media.Picture) -> bytes:
    """The PNG of an order, which tells how to make it again: ``smooth show-params`` prints the command."""
    from smooth import __version__

    values = order.model_dump() | {"model": version.uri}
    known = {"smooth": __version__, "command": "generate", "identity": version.edited.identity, **values}
    options = [f"--{key}={value}" for key, value in values.items() if key != "prompt" and value is not None]
    return media.png(picture, known, ["smooth", "generate", "--out=picture.png", *options, "--", order.prompt])


def _embed(pipeline: Any, orders: Sequence[Order]) -> dict[str, torch.Tensor]:
    """What the network is told of each order; those with one negative prompt are encoded together."""
    places: dict[str, list[int]] = {}
    for place, order in enumerate(orders):
        places.setdefault(order.negative, []).append(place)
    parts = [
        sampler.embed(pipeline, [orders[place].prompt for place in among], negative)
        for negative, among in places.items()
    ]
    back = torch.tensor([place for among in places.values() for place in among]).argsort()
    return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
