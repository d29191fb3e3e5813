"""One sampling worker: the base pipeline with what was trained on a switch, and the feature networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from smooth.config import ModelConfig
from smooth.diffusion import sampler
from smooth.evaluate import frames
from smooth.evaluate.features import FeatureNetwork
from smooth.evaluate.inception import InceptionNetwork, Weights
from smooth.evaluate.protocol import Protocol
from smooth.models import trained
from smooth.models.pipeline import load_pipeline

Model = Literal["base", "smooth"]
Kind = Literal["frames", "pictures"]


@dataclass(frozen=True)
class Block:
    """Pictures ``start`` to ``stop`` of a kind: frames count prompt by prompt, pictures one a prompt."""

    kind: Kind
    start: int
    stop: int

    @property
    def name(self) -> str:
        """File name of its cached result."""
        return f"{self.kind}-{self.start:07d}-{self.stop:07d}.npy"


def blocks(kind: Kind, total: int, size: int) -> list[Block]:
    """Cut ``total`` pictures into blocks of ``size``. The cut, not the workers, decides what shares a batch."""
    return [Block(kind, start, min(start + size, total)) for start in range(0, total, size)]


class Painter:
    """Samples blocks for either model. Any number of painters gives the same pictures."""

    def __init__(
        self, model: ModelConfig, trained_folder: str, protocol: Protocol, cuda: bool, inception: Weights | None = None
    ) -> None:
        device = torch.device("cuda" if cuda else "cpu")
        self._protocol = protocol
        self._pipeline: Any = load_pipeline(model.base, revision=model.revision, device=device)
        self._switch = trained.attach(self._pipeline, trained_folder)
        self._pipeline.vae.to(memory_format=torch.channels_last)  # a tenth faster convolutions on CPU
        self._shape = sampler.latent_shape(self._pipeline, protocol.image_size)
        self._networks: list[FeatureNetwork | InceptionNetwork] = [FeatureNetwork(protocol.image_size, device)]
        if inception is not None:
            self._networks.append(InceptionNetwork(inception, device))

    def paint(self, model: Model, block: Block) -> npt.NDArray[np.uint8]:
        """Pictures (B, H, W, 3) uint8 of a block."""
        self._switch(model == "smooth")
        self._pipeline.unet.to(memory_format=torch.channels_last)
        indices = range(block.start, block.stop)
        if block.kind == "frames":
            return frames.paint(self._pipeline, self._protocol, indices)
        prompts = [self._protocol.picture_prompts[index] for index in indices]
        noises = [sampler.noise(self._protocol.seed, "picture", index, self._shape) for index in indices]
        return sampler.sample(
            self._pipeline,
            prompts,
            torch.stack(noises),
            steps=self._protocol.steps,
            guidance=self._protocol.guidance,
        )

    def result(self, model: Model, block: Block) -> tuple[Block, npt.NDArray[np.uint8] | npt.NDArray[np.float32]]:
        """What is kept of a block: frames as pictures, the other pictures as features."""
        pictures = self.paint(model, block)
        return block, pictures if block.kind == "frames" else self.features(pictures)

    def features(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features (B, D) float32 of pictures (B, H, W, 3) uint8, one network's beside the other's."""
        return np.concatenate([network(pictures) for network in self._networks], axis=1)
