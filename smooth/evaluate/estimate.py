"""ISTD of weights that are still in training, on the first few of the evaluation's interpolations.

The definition, the noises and the sampler are the evaluation's. The prompts are fewer, so the value is an estimate:
its stamp differs from that of the evaluation, and the code refuses to compare the two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smooth.config import TrainConfig
from smooth.evaluate import istd
from smooth.evaluate.frames import paint
from smooth.evaluate.metric import Metric
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.smoothness import istd_difference, istd_of
from smooth.models import trained
from smooth.models.pipeline import load_pipeline


class Estimator:
    """The base pipeline, and what is trained of its UNet as parameters that take any weights."""

    def __init__(
        self,
        base: str,
        revision: str | None,
        config: TrainConfig,
        protocol: Protocol,
        *,
        batch_size: int,
        cuda: bool,
    ) -> None:
        """Load the base and measure it; ``batch_size`` pictures are sampled at once."""
        if not cuda:
            os.nice(19)  # the cores are the training's
        self._protocol = protocol
        self._batch_size = batch_size
        device = torch.device("cuda" if cuda else "cpu")
        self._pipeline: Any = load_pipeline(base, revision=revision, device=device)
        unet = self._pipeline.unet
        self._parameters = trained.choose(unet, config, seed=0)  # a new adapter changes nothing, whatever the seed
        unet.requires_grad_(False).eval()
        for network in (unet, self._pipeline.vae):
            network.to(memory_format=torch.channels_last)
        self._base = self._distances()

    def estimate(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> list[Metric]:
        """ISTD of the base, of trained ``weights`` by parameter, and the paired difference."""
        for name, parameter in self._parameters.items():
            parameter.data.copy_(torch.tensor(weights[name]))
        smooth = self._distances()
        return [
            istd_of(self._protocol, "base", self._base),
            istd_of(self._protocol, "smooth", smooth),
            istd_difference(self._protocol, self._base, smooth),
        ]

    def _distances(self) -> npt.NDArray[np.float64]:
        """(P, F - 1) between neighbouring frames."""
        prompts, frames = len(self._protocol.prompts), self._protocol.frames
        total = prompts * frames
        pictures = np.concatenate(
            [
                paint(self._pipeline, self._protocol, range(start, min(start + self._batch_size, total)))
                for start in range(0, total, self._batch_size)
            ]
        )
        return istd.neighbour_distances(pictures.reshape(prompts, frames, *pictures.shape[1:]))
