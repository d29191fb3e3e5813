"""One sampling worker: the pipelines of both models, and the feature networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from smooth.diffusion import sampler
from smooth.diffusion.inversion import Walk
from smooth.evaluate import frames, paths, reconstruction
from smooth.evaluate.embedders import EmbeddingNetwork
from smooth.evaluate.features import FeatureNetwork
from smooth.evaluate.fitting import Fitting, Painted
from smooth.evaluate.inception import InceptionNetwork
from smooth.evaluate.networks import Contents, Network
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.real import Captioned, Encoded, decoded
from smooth.evaluate.subjects import Subject
from smooth.models import trained
from smooth.models.pipeline import ModelError, load_pipeline

Model = Literal["base", "smooth"]
Kind = Literal["frames", "pictures", "reconstructions", "paths"]
KNOBS: dict[Kind, str] = dict.fromkeys(("frames", "pictures", "paths"), "evaluate.batch_size")
KNOBS["reconstructions"] = "evaluate.reconstruction_batch"
Features = list[npt.NDArray[np.float32]]
"""(B, D) of some networks, in the order in which they were asked for"""
Lengths = list[npt.NDArray[np.float64]]
"""(B,) of paths by some distances, likewise"""


@dataclass(frozen=True)
class Block:
    """Pictures (or paths) ``start`` to ``stop`` of a kind: frames count prompt by prompt, the others one each."""

    kind: Kind
    start: int
    stop: int

    @property
    def name(self) -> str:
        """File name of its cached result."""
        return f"{self.kind}-{self.start:07d}-{self.stop:07d}.npy"

    @property
    def pictures(self) -> int:
        """That it counts for: of a path, both ends of its step."""
        return (self.stop - self.start) * (2 if self.kind == "paths" else 1)


def blocks(kind: Kind, total: int, size: int) -> list[Block]:
    """Cut ``total`` pictures into blocks of ``size``. The cut, not the workers, decides what shares a batch."""
    return [Block(kind, start, min(start + size, total)) for start in range(0, total, size)]


class Painter:
    """Samples blocks for either model. Any number of painters gives the same pictures."""

    def __init__(
        self,
        subjects: dict[Model, Subject],
        protocol: Protocol,
        cuda: bool,
        contents: Sequence[Contents] = (),
        real: Captioned | None = None,
        perceptual: PerceptualNetwork | None = None,
    ) -> None:
        """Load all of it.

        Args:
            subjects: both models.
            protocol: what is sampled, and by which networks it is judged.
            cuda: on a GPU.
            contents: files of each of the protocol's networks.
            real: what is inverted and painted again.
            perceptual: LPIPS's network, for path lengths.

        Raises:
            ModelError: a model can't be loaded, the two take noises of different shapes, or one can't be inverted.
        """
        device = torch.device("cuda" if cuda else "cpu")
        self._protocol = protocol
        self._real = real
        self._perceptual = None if perceptual is None else perceptual.to(device)
        self._fitting: dict[Kind, Fitting] = {kind: Fitting(kind, knob) for kind, knob in KNOBS.items()}
        self._switches: dict[Model, Callable[[], Any]] = _load(subjects, device)
        shapes = {
            model: sampler.latent_shape(switch(), protocol.image_size) for model, switch in self._switches.items()
        }
        if len(set(shapes.values())) > 1:
            raise ModelError(
                f"the models take noises of different shapes, {shapes}: no picture of one pairs with another's"
            )
        self._shape = shapes["base"]
        if protocol.reconstructions:
            self._check_inversion()
        self._networks = [
            _network(network, files, device) for network, files in zip(protocol.networks, contents, strict=True)
        ]

    def _check_inversion(self) -> None:
        """Now, not after the sampling of all that comes before."""
        try:
            for switch in self._switches.values():
                Walk(switch(), self._protocol.steps)
        except ValueError as error:
            raise ModelError(f"{error}; set evaluate.reconstructions=0") from error

    def paint(self, model: Model, block: Block) -> npt.NDArray[np.uint8]:
        """Pictures (B, H, W, 3) uint8 of a block."""
        pipeline = self._pipeline(model)
        if block.kind == "frames":
            return np.concatenate(self._fit(block, partial(frames.paint, pipeline, self._protocol)))
        return np.concatenate(self._fit(block, partial(self._single, pipeline)))

    def _fit(self, block: Block, paint: Callable[[range], Painted]) -> list[Painted]:
        return self._fitting[block.kind](paint, range(block.start, block.stop))

    def _single(self, pipeline: Any, indices: range) -> npt.NDArray[np.uint8]:
        prompts = [self._protocol.picture_prompts[index] for index in indices]
        noises = [sampler.noise(self._protocol.seed, "picture", index, self._shape) for index in indices]
        return sampler.sample(
            pipeline,
            prompts,
            torch.stack(noises),
            steps=self._protocol.steps,
            guidance=self._protocol.guidance,
        )

    def result(
        self,
        model: Model,
        block: Block,
        networks: Sequence[int] = (),
        kept: npt.NDArray[np.uint8] | None = None,
    ) -> tuple[Model, Block, npt.NDArray[np.uint8] | None, Features | Lengths]:
        """What is to be kept of a block: its pictures, unless they are ``kept`` yet, and features by ``networks``.

        Of paths there are lengths alone, by the distances that ``networks`` are the numbers of.
        """
        if block.kind == "paths":
            pipeline = self._pipeline(model)
            measure = partial(paths.measure, pipeline, self._protocol, network=self._perceptual, numbers=networks)
            parts = self._fit(block, measure)
            return model, block, None, [np.concatenate(each) for each in zip(*parts, strict=True)]
        if block.kind == "reconstructions":
            return model, block, self._reconstructed(model, block), []
        pictures = self.paint(model, block) if kept is None else kept
        prompts = list(self._protocol.picture_prompts[block.start : block.stop])
        return model, block, pictures if kept is None else None, self.features(pictures, networks, prompts)

    def references(self, batch: Sequence[Encoded], networks: Sequence[int]) -> Features:
        """Features of reference pictures by ``networks``.

        Raises:
            ConfigError: one can't be decoded.
        """
        return self.features(decoded(batch, self._protocol.image_size), networks)

    def _pipeline(self, model: Model) -> Any:
        """Ready to sample; the same layout in memory whatever came before, as the last bits depend on it."""
        pipeline = self._switches[model]()
        pipeline.unet.to(memory_format=torch.channels_last)
        return pipeline

    def _reconstructed(self, model: Model, block: Block) -> npt.NDArray[np.uint8]:
        if self._real is None:
            raise ValueError("this painter was given no real pictures to reconstruct")
        paint = partial(reconstruction.paint, self._pipeline(model), self._protocol, self._real)
        return np.concatenate(self._fit(block, paint))

    def features(
        self, pictures: npt.NDArray[np.uint8], networks: Sequence[int], prompts: list[str] | None = None
    ) -> Features:
        """Features (B, D) float32 of pictures (B, H, W, 3) uint8 by some of the protocol's networks."""
        return [self._networks[number](pictures, prompts) for number in networks]


def _network(
    network: Network, contents: Contents, device: torch.device
) -> Callable[[npt.NDArray[np.uint8], list[str] | None], npt.NDArray[np.float32]]:
    """What makes features of pictures and their prompts, which CLIP alone looks at."""
    match network.kind:
        case "efficientnet":
            efficientnet = FeatureNetwork(int(network.stamp["feature_input"]), device)
            return lambda pictures, _: efficientnet(pictures)
        case "inception":
            inception = InceptionNetwork(network, contents, device)
            return lambda pictures, _: inception(pictures)
        case _:
            return EmbeddingNetwork(network, contents, device)


def _load(subjects: dict[Model, Subject], device: torch.device) -> dict[Model, Callable[[], Any]]:
    """What gives each model's pipeline, ready to sample. A base and what was trained on it share one."""
    base, smooth = subjects["base"], subjects["smooth"]
    plain = _pipeline(base, device)
    if smooth == replace(base, trained=smooth.trained) and base.trained is None and smooth.trained is not None:
        switch = trained.attach(plain, smooth.trained)

        def switched(on: bool) -> Any:
            switch(on)
            return plain

        return {"base": lambda: switched(False), "smooth": lambda: switched(True)}
    pipelines: dict[Model, Any] = {}
    for model, subject in subjects.items():
        pipelines[model] = pipeline = plain if subject == base else _pipeline(subject, device)
        if subject.trained is not None:
            trained.attach(pipeline, subject.trained)(True)
    return {model: partial(pipelines.__getitem__, model) for model in pipelines}


def _pipeline(subject: Subject, device: torch.device) -> Any:
    pipeline = load_pipeline(subject.base, revision=subject.revision, device=device)
    pipeline.vae.to(memory_format=torch.channels_last)  # a tenth faster convolutions on CPU
    return pipeline
