"""The pictures of the protocol's interpolations, sampled by whatever pipeline is judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smooth.diffusion import sampler
from smooth.evaluate.protocol import Protocol


def paint(pipeline: Any, protocol: Protocol, indices: range) -> npt.NDArray[np.uint8]:
    """Frames (B, H, W, 3) uint8; they count prompt by prompt, ``protocol.frames`` each."""
    shape = sampler.latent_shape(pipeline, protocol.image_size)
    places = [divmod(index, protocol.frames) for index in indices]
    return sampler.sample(
        pipeline,
        [protocol.prompts[prompt] for prompt, _ in places],
        torch.stack([_noise(protocol, prompt, frame, shape) for prompt, frame in places]),
        steps=protocol.steps,
        guidance=protocol.guidance,
    )


def _noise(protocol: Protocol, prompt: int, frame: int, shape: tuple[int, int, int]) -> torch.Tensor:
    start = sampler.noise(protocol.seed, "start", prompt, shape)
    end = sampler.noise(protocol.seed, "end", prompt, shape)
    return sampler.slerp(start, end, frame / (protocol.frames - 1))
