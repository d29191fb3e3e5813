"""Drag editing: DragDiffusion's latent optimisation (arXiv 2306.14435), the third task of arXiv 2312.04410.

A picture is inverted to one noise level. There its latent is optimised so that the features around each handle point
appear a step nearer to its target point (motion supervision); then the handle is looked for again by its first feature
(point tracking), and so on until it has arrived. The latent is denoised from there. All without guidance, as in the
paper. Out of scope are the two aids that DragDiffusion adds to keep a photograph's identity: the LoRA that it fits to
each picture, and the attention to the source's keys and values while denoising.

Points are (x, y) in pixels from the upper left. The features are those of an upsampling block, brought to half of the
picture's size (the paper's 256 for 512); radii and steps count pixels of that grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from smooth.diffusion import sampler
from smooth.diffusion.inversion import Walk
from smooth.edit import Progress
from smooth.edit.generate import check, check_pictures
from smooth.models.pipeline import decode_latents, encode_pictures

MAX_POINTS = 32
REDUCTION = 2  # pixels of the picture for one of the feature grid
Point = tuple[float, float]


@dataclass(frozen=True)
class DragSettings:
    """What the optimisation depends on; the defaults are the paper's, the block counts from the end."""

    steps: int = 50
    """of DDIM from pure noise"""
    depth: float = 0.7
    """share of them that the picture is inverted by"""
    iterations: int = 80
    """of the optimizer, at most"""
    learning_rate: float = 1e-2
    mask_weight: float = 0.1
    motion_radius: int = 1
    tracking_radius: int = 3
    block: int = -2
    """index of the upsampling block: the third of the four of Stable Diffusion"""


@dataclass(frozen=True)
class Dragged:
    """What became of the picture, and of its points on the way."""

    picture: npt.NDArray[np.uint8]
    """(H, W, 3)"""
    handles: npt.NDArray[np.float64]
    """(I + 1, P, 2) where the handles were found before the first iteration and after each, (x, y) in pixels"""
    losses: npt.NDArray[np.float64]
    """(I,) motion supervision and mask term of each iteration"""
    arrived: bool
    """whether every handle came within a pixel of the feature grid of its target"""


def drag(
    pipeline: Any,
    picture: npt.NDArray[np.uint8],
    prompt: str,
    handles: Sequence[Point],
    targets: Sequence[Point],
    *,
    mask: npt.NDArray[np.bool_] | None = None,
    settings: DragSettings | None = None,
    progress: Progress | None = None,
) -> Dragged:
    """Move what is at the handle points to the target points.

    Args:
        pipeline: a ``StableDiffusionPipeline`` with a DDIM scheduler, in single precision.
        picture: (H, W, 3) uint8.
        prompt: of what it shows.
        handles: P points.
        targets: a point for each handle.
        mask: (H, W), true where the picture may change; None is everywhere. It holds the rest by a term of the loss.
        settings: None is the paper's.
        progress: called after each step of the inversion, the optimisation and the denoising.

    Raises:
        ValueError: points outside of the picture, without a partner, too many or none; a mask of another size.
    """
    settings = settings or DragSettings()
    check_pictures(pipeline, picture[None])
    check(pipeline, settings.steps, 1.0, prompt)
    start, end = _points(picture, handles, targets)
    if mask is not None and (mask.shape != picture.shape[:2] or mask.dtype != np.bool_):
        raise ValueError(f"mask is {mask.dtype} {mask.shape}: give booleans of {picture.shape[:2]}, as the picture")
    walk = Walk(pipeline, settings.steps)
    if not 0 < settings.depth <= 1 or settings.iterations < 0:
        raise ValueError(f"depth={settings.depth}, iterations={settings.iterations}: give a depth of (0, 1], and >= 0")
    timesteps = walk.timesteps[-max(1, round(settings.depth * settings.steps)) :]
    text = sampler.embed(pipeline, [prompt])["prompt_embeds"]
    count = _counter(progress, settings.iterations + 2 * len(timesteps))
    with torch.no_grad():
        latents = encode_pictures(pipeline, picture[None])
        for done, timestep in enumerate(reversed(timesteps), start=1):
            latents = walk.backwards(latents, timestep, walk.predict(latents, timestep, text))
            count(done)
    problem = _Problem(walk, pipeline.unet, latents, text, timesteps[0], picture.shape[:2], mask, settings)
    moved, found, losses, arrived = _optimise(problem, start, end, lambda done: count(len(timesteps) + done))
    with torch.no_grad():
        for done, timestep in enumerate(timesteps, start=1):
            moved = walk.forwards(moved, timestep, walk.predict(moved, timestep, text))
            count(len(timesteps) + settings.iterations + done)
    return Dragged(decode_latents(pipeline, moved)[0], found, losses, arrived)


class _Problem:
    """The latent at one noise level with what its loss depends on."""

    def __init__(
        self,
        walk: Walk,
        unet: Any,
        latents: Tensor,
        text: Tensor,
        timestep: int,
        size: tuple[int, int],
        mask: npt.NDArray[np.bool_] | None,
        settings: DragSettings,
    ) -> None:
        self.latents, self.settings = latents, settings
        self._walk, self._text, self._timestep = walk, text, timestep
        self._unet, self._block = unet, _block(unet, settings.block)
        self._grid = tuple(max(1, side // REDUCTION) for side in size)
        allowed = torch.ones(size) if mask is None else torch.tensor(mask).float()
        held = 1 - functional.adaptive_avg_pool2d(allowed[None, None], (latents.shape[2], latents.shape[3]))
        self._held: Tensor | None = held.to(latents) if mask is not None else None
        with torch.no_grad():
            self.first, self._next = self.at(latents)

    def at(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Features (1, K, H / 2, W / 2) of latents, and the latents of the next step."""
        with _output(self._block) as seen:
            output = self._walk.predict(latents, self._timestep, self._text)
        features = functional.interpolate(seen[0].float(), self._grid, mode="bilinear")
        return features, self._walk.forwards(latents, self._timestep, output)

    def loss(self, features: Tensor, following: Tensor, points: Tensor, targets: Tensor) -> Tensor:
        """Motion supervision (eq. 4 of the paper, with the mean over channels of its code) and the mask term."""
        way = targets - points
        length = way.norm(dim=1, keepdim=True)
        patches = points[:, None] + _offsets(self.settings.motion_radius, points)
        with torch.no_grad():
            before = sampled(features, patches)
        after = sampled(features, patches + (way / length.clamp(min=1))[:, None])
        moving = (length > 1).to(features)  # those that have arrived stay free
        loss: Tensor = ((after - before).abs().mean(2) * moving).sum()
        if self._held is not None:
            loss = loss + self.settings.mask_weight * ((following - self._next) * self._held).abs().sum()
        return loss

    def track(self, features: Tensor, origins: Tensor, points: Tensor) -> Tensor:
        """The place (P, 2) near each point whose feature is nearest to that of its origin at first."""
        height, width = self._grid
        places = points[:, None] + _offsets(self.settings.tracking_radius, points)
        outside = ((places < 0) | (places > places.new_tensor([width - 1, height - 1]))).any(2)
        wanted = sampled(self.first, origins[:, None])
        distances = (sampled(features, places) - wanted).abs().sum(2)
        nearest = distances.masked_fill(outside, torch.inf).argmin(1)
        found: Tensor = places[torch.arange(len(points)), nearest]
        return found


@torch.enable_grad()
def _optimise(
    problem: _Problem, start: Tensor, end: Tensor, count: Callable[[int], None]
) -> tuple[Tensor, npt.NDArray[np.float64], npt.NDArray[np.float64], bool]:
    """The moved latents, positions (I + 1, P, 2) in pixels, losses (I,), and whether all handles arrived."""
    latents = problem.latents.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latents], lr=problem.settings.learning_rate)
    origins, targets = _to_grid(start).to(latents), _to_grid(end).to(latents)
    points = origins
    told, losses = [start.double().numpy()], []
    for done in range(problem.settings.iterations + 1):
        features, following = problem.at(latents)  # once for the last iteration's tracking and this one's loss
        if done:
            points = problem.track(features.detach(), origins, points)
            told.append(_to_pixels(points).double().cpu().numpy())
            count(done)
        arrived = bool(((targets - points).norm(dim=1) <= 1).all())
        if arrived or done == problem.settings.iterations:
            break
        loss = problem.loss(features, following, points, targets)
        (latents.grad,) = torch.autograd.grad(loss, [latents])
        optimizer.step()
        losses.append(loss.item())
    return latents.detach(), np.stack(told), np.asarray(losses), arrived


def sampled(features: Tensor, places: Tensor) -> Tensor:
    """Bilinear values at places of the grid, the rim's beyond it.

    Args:
        features: (1, K, h, w).
        places: (P, N, 2) as (x, y), where (0, 0) is the middle of the first cell.

    Returns:
        (P, N, K).
    """
    size = places.new_tensor([features.shape[3], features.shape[2]])
    grid = (2 * places + 1) / size - 1
    found = functional.grid_sample(features, grid[None], mode="bilinear", padding_mode="border", align_corners=False)
    return found[0].permute(1, 2, 0)


def _points(
    picture: npt.NDArray[np.uint8], handles: Sequence[Point], targets: Sequence[Point]
) -> tuple[Tensor, Tensor]:
    """Checked, as float32 (P, 2) each."""
    if not handles or len(handles) != len(targets):
        raise ValueError(f"{len(handles)} handle and {len(targets)} target points: give one target for each handle")
    if len(handles) > MAX_POINTS:
        raise ValueError(f"{len(handles)} pairs of points: give at most {MAX_POINTS}")
    height, width = picture.shape[:2]
    for name, points in (("handle", handles), ("target", targets)):
        for x, y in points:
            if not (0 <= x <= width - 1 and 0 <= y <= height - 1):  # not a number is outside, too
                raise ValueError(f"{name} point ({x:g}, {y:g}) is outside of the picture, {width} x {height} pixels")
    return torch.tensor(handles, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)


def _to_grid(points: Tensor) -> Tensor:
    return (points + 0.5) / REDUCTION - 0.5


def _to_pixels(points: Tensor) -> Tensor:
    return (points + 0.5) * REDUCTION - 0.5


def _offsets(radius: int, like: Tensor) -> Tensor:
    """((2 radius + 1)^2, 2), the middle first, so that ties keep a point where it is."""
    steps = torch.arange(-radius, radius + 1)
    offsets = torch.cartesian_prod(steps, steps)
    order = offsets.square().sum(1).argsort(stable=True)
    return offsets[order].to(like)


def _block(unet: Any, index: int) -> torch.nn.Module:
    blocks = unet.up_blocks
    if not -len(blocks) <= index < len(blocks):
        raise ValueError(f"block={index}: the network has {len(blocks)} upsampling blocks")
    found: torch.nn.Module = blocks[index]
    return found


@contextmanager
def _output(block: torch.nn.Module) -> Iterator[list[Tensor]]:
    """The list that gets what ``block`` gives meanwhile."""
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def _counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    return lambda done: None if progress is None else progress(done, total)
