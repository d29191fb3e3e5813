"""Inception-v3 with the weights of the published FID, as torch-fidelity ships them; no package holds the file itself.

Network, resize and input scale are torch-fidelity's own, so values agree with its. The file is found by a path or in
torch's hub cache, checked by its SHA-256, and read without unpickling anything but tensors. Other weights in its
format serve too, but then the distance isn't called FID.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smooth import store
from smooth.config import ConfigError
from smooth.evaluate.features import checked
from smooth.evaluate.quality import Space

FILE = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FID = "FID (Inception-v3)"


@dataclass(frozen=True)
class Weights:
    """A file of weights, as bytes: it goes to actors on machines that don't have it."""

    data: bytes
    sha256: str


def hub_path() -> str:
    """Where torch's hub keeps the file."""
    return store.join(torch.hub.get_dir(), "checkpoints", FILE)


def find(path: str | None) -> Weights | None:
    """The weights at ``path``, whichever they are; with None those of FID from torch's hub cache, if they are there.

    Raises:
        ConfigError: nothing at ``path``, or another file under the name in the hub cache.
    """
    place = hub_path() if path is None else path
    if not store.exists(place):
        if path is None:
            return None
        raise ConfigError(f"evaluate.inception_weights={path}: no such file; give the path of torch-fidelity's {FILE}")
    data = store.read_bytes(place)
    found = Weights(data, hashlib.sha256(data).hexdigest())
    if path is None and found.sha256 != SHA256:
        raise ConfigError(
            f"{place} has SHA-256 {found.sha256}, torch-fidelity's {FILE} has {SHA256}; fetch it again, or name other "
            "weights by evaluate.inception_weights"
        )
    return found


def missing() -> str:
    """Why FID is unavailable, and what to do."""
    return (
        f"needs torch-fidelity's {FILE}: give its path as evaluate.inception_weights, or put it at {hub_path()} "
        "before the evaluation"
    )


def space(sha256: str) -> Space:
    """The feature space of weights: FID's own, or others under a name of theirs."""
    stamp: dict[str, str | int | float] = {
        "features": "Inception-v3, 2048",
        "weights": sha256,
        "feature_input": 299,
        "resize": "bilinear of TensorFlow 1, not antialiased",
    }
    if sha256 == SHA256:
        return Space("Inception-v3", stamp, frechet="FID")
    return Space(f"Inception-v3 {sha256[:8]}", stamp)


class InceptionNetwork:
    """Maps pictures to 2048 numbers each: torch-fidelity's last pooling."""

    dimensions = 2048

    def __init__(self, weights: Weights, device: str | torch.device = "cpu") -> None:
        """Build the network of ``weights``.

        Raises:
            ConfigError: they aren't tensors of this network.
        """
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.device = torch.device(device)
        try:
            state = torch.load(io.BytesIO(weights.data), map_location="cpu", weights_only=True)
            # torch-fidelity unpickles whatever a file holds, so it is given one that was written here of tensors alone.
            clean = io.BytesIO()
            torch.save(state, clean)
            clean.seek(0)
            network: Any = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=clean)
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError) as error:
            raise ConfigError(
                f"evaluate.inception_weights (SHA-256 {weights.sha256}) is no state dict of torch-fidelity's "
                f"Inception-v3: {str(error).splitlines()[0]}; give its {FILE}"
            ) from error
        self._network = network.to(self.device)

    @torch.inference_mode()
    def __call__(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(B, H, W, 3) uint8 to (B, 2048) float32.

        Raises:
            ValueError: another shape or dtype.
        """
        x = torch.tensor(checked(pictures), device=self.device).permute(0, 3, 1, 2)
        (found,) = self._network(x)
        return np.asarray(found.cpu().numpy())
