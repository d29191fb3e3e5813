"""Real pictures to noise and back: DDIM and null-text inversion, each found once and kept by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from smooth import store
from smooth.diffusion import inversion as walks
from smooth.diffusion import sampler
from smooth.diffusion.inversion import Walk
from smooth.edit import Progress
from smooth.edit.generate import check, check_pictures
from smooth.models.pipeline import decode_latents, encode_pictures

RECIPE = 2  # raise when the same settings give other numbers


@dataclass(frozen=True)
class Cache:
    """Where finished inversions are kept, and whose they are."""

    folder: str
    """on any fsspec path"""
    model: str
    """``EditModel.identity_at`` of the strength that the pipeline has"""


@dataclass(frozen=True)
class Found:
    """The tensors of an inversion, on the CPU."""

    walk: Tensor
    """(steps + 1, B, C, h, w), from the clean latents to the noise"""
    text: Tensor
    """(B, L, D) embeddings of the prompts"""
    nulls: Tensor
    """(steps, B, L, D) unconditional embedding of each step, from noise to picture; (steps, 1, L, D) if shared"""
    losses: Tensor
    """(steps, null-text steps + 1, B or 1): least loss so far at each inner step; it never rises"""
    errors: Tensor
    """(steps, B): mean squared distance of the reconstruction from the walk after each step, in latents"""


@dataclass(frozen=True)
class Inversion:
    """What B pictures come back from."""

    pictures: npt.NDArray[np.uint8]
    """(B, H, W, 3) as they were given"""
    prompts: tuple[str, ...]
    guidance: float
    found: Found

    @property
    def steps(self) -> int:
        """DDIM steps of the walk."""
        return len(self.found.nulls)

    @property
    def noise(self) -> Tensor:
        """(B, C, h, w)."""
        return self.found.walk[-1]

    @property
    def clean(self) -> Tensor:
        """(B, C, h, w) of the pictures; decoded they are the best that the VAE lets come back."""
        return self.found.walk[0]


def invert(
    pipeline: Any,
    pictures: npt.NDArray[np.uint8],
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    null_text_steps: int = 10,
    shared: bool = False,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Inversion:
    """Noise and unconditional embeddings that the pictures come back from.

    Each picture is inverted by itself, so that what is found of it depends on nothing beside it; ``shared`` embeddings
    are found for all together.

    Args:
        pipeline: Stable Diffusion (1 or 2), in float32.
        pictures: (B, H, W, 3) uint8 of the model's size.
        prompts: what B pictures show.
        steps: DDIM steps, there and back.
        guidance: scale to come back with; at 1 or less DDIM inversion alone does.
        null_text_steps: of the optimizer a step, at most; 0 is DDIM inversion alone.
        shared: one embedding a step for all pictures, as interpolation between them wants it.
        progress: see :data:`smooth.edit.Progress`; what is in the cache counts as done.
        cache: where finished inversions are looked for and kept.

    Raises:
        ValueError: settings that can't be, or a network of XL.
    """
    _check(pipeline, pictures, prompts, steps, guidance, null_text_steps)
    groups = [range(len(prompts))] if shared else [range(index, index + 1) for index in range(len(prompts))]
    done, total = 0, 2 * steps * len(groups)

    def step(count: int = 1) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    parts = []
    for group in groups:
        asked = _Asked(
            pictures[group.start : group.stop],
            tuple(prompts[group.start : group.stop]),
            steps,
            guidance,
            null_text_steps if guidance > 1 else 0,
        )
        path = None if cache is None else store.join(cache.folder, f"{asked.key(cache.model, pipeline)}.safetensors")
        if path is not None and store.exists(path):
            parts.append(_load(path))
            step(2 * steps)
            continue
        parts.append(_invert(pipeline, asked, shared, step))
        if path is not None:
            _keep(path, parts[-1])
    return Inversion(pictures, tuple(prompts), guidance, _joined(parts))


def reconstruct(pipeline: Any, inverted: Inversion, *, progress: Progress | None = None) -> npt.NDArray[np.uint8]:
    """The pictures (B, H, W, 3) that come back; ``progress`` as of :func:`invert`."""
    walk = Walk(pipeline, inverted.steps)
    pictures, done = [], 0
    total = inverted.steps * len(inverted.prompts)

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for index in range(len(inverted.prompts)):
        noise, text, nulls = (each.to(pipeline.device) for each in of_picture(inverted.found, index))
        clean = walks.reconstruct(walk, noise, text, nulls, inverted.guidance, step)
        pictures.append(decode_latents(pipeline, clean))
    return np.concatenate(pictures)


def of_picture(found: Found, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (1, C, h, w), text (1, L, D) and unconditional embeddings (steps, 1, L, D) of one picture."""
    one = slice(index, index + 1)
    nulls = found.nulls if found.nulls.shape[1] == 1 else found.nulls[:, one]
    return found.walk[-1, one], found.text[one], nulls


@dataclass(frozen=True)
class _Asked:
    """What decides an inversion, besides the model."""

    pictures: npt.NDArray[np.uint8]
    prompts: tuple[str, ...]
    steps: int
    guidance: float
    inner_steps: int

    def key(self, model: str, pipeline: Any) -> str:
        """Hex digits over the settings and each byte of the pictures; one group shares its embeddings."""
        settings = {
            "recipe": RECIPE,
            "model": model,
            "dtype": str(pipeline.dtype),
            "shape": self.pictures.shape,
            "pictures": hashlib.sha256(self.pictures.tobytes()).hexdigest(),
            "prompts": self.prompts,
            "steps": self.steps,
            "guidance": self.guidance,
            "inner_steps": self.inner_steps,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def _check(
    pipeline: Any,
    pictures: npt.NDArray[np.uint8],
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    null_text_steps: int,
) -> None:
    check(pipeline, steps, guidance, *prompts)
    check_pictures(pipeline, pictures)
    if not len(pictures) == len(prompts) >= 1:
        raise ValueError(f"{len(pictures)} pictures with {len(prompts)} prompts; give each picture one")
    if not 0 <= null_text_steps <= 100:
        raise ValueError(f"null_text_steps={null_text_steps}: give 0 to 100")


def _invert(pipeline: Any, asked: _Asked, shared: bool, each_step: Callable[[], None]) -> Found:
    walk = Walk(pipeline, asked.steps)
    told = sampler.embed(pipeline, asked.prompts)
    text, null = told["prompt_embeds"], told["negative_prompt_embeds"]
    inverted = walks.ddim_inversion(walk, encode_pictures(pipeline, asked.pictures), text, each_step)
    fitted = walks.null_text_inversion(
        walk,
        inverted,
        text,
        null[:1] if shared else null,
        guidance=asked.guidance,
        inner_steps=asked.inner_steps,
        each_step=each_step,
    )
    found = Found(torch.stack(inverted), text, fitted.embeddings, fitted.losses, fitted.distances)
    return Found(**{each.name: getattr(found, each.name).detach().cpu().contiguous() for each in fields(Found)})


def _joined(parts: Sequence[Found]) -> Found:
    """Those of several pictures as one."""
    if len(parts) == 1:
        return parts[0]
    places = {"walk": 1, "text": 0, "nulls": 1, "losses": 2, "errors": 1}
    return Found(**{name: torch.cat([getattr(part, name) for part in parts], place) for name, place in places.items()})


def _keep(path: str, found: Found) -> None:
    tensors = {each.name: getattr(found, each.name) for each in fields(Found)}
    store.write_bytes(path, safetensors.torch.save(tensors))


def _load(path: str) -> Found:
    """What :func:`_keep` wrote.

    Raises:
        ArtifactError: the file is another one.
    """
    try:
        return Found(**safetensors.torch.load(store.read_bytes(path)))
    except (safetensors.SafetensorError, TypeError) as error:
        raise store.ArtifactError(f"{path} is no finished inversion ({error}); delete it") from error
