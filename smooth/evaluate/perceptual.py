"""LPIPS (arXiv 1801.03924) between neighbouring frames, and LPIPS-ISTD: ISTD by it instead of by pixels.

The package lpips ships the linear heads; the AlexNet under them is torchvision's, a file that no package holds.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smooth import store
from smooth.config import ConfigError
from smooth.evaluate.diversity import Interval
from smooth.evaluate.istd import Images, bootstrap, deviation, unit_pictures
from smooth.evaluate.networks import ALEXNET_FILE, hub_path

DIGEST = "7be5be79"  # of torchvision's file, the first eight digits


def missing() -> str:
    """Why LPIPS is unavailable, and what to do."""
    return f"needs torchvision's {ALEXNET_FILE}: put it at {hub_path(ALEXNET_FILE)} before the evaluation"


def find() -> PerceptualNetwork | None:
    """LPIPS, where torch's hub cache has its file.

    Raises:
        ConfigError: another file under its name.
    """
    return PerceptualNetwork() if store.exists(hub_path(ALEXNET_FILE)) else None


class PerceptualNetwork:
    """LPIPS 0.1 on AlexNet: squared perceptual distances of pictures in [0, 1]."""

    def __init__(self, path: str | None = None, device: str | torch.device = "cpu") -> None:
        """Load torchvision's AlexNet from ``path``, or from torch's hub cache.

        Raises:
            ConfigError: no file there, another one under its name, or no state dict of AlexNet.
        """
        import lpips

        place = path or hub_path(ALEXNET_FILE)
        if not store.exists(place):
            raise ConfigError(f"LPIPS {missing()}, or give its path")
        data = store.read_bytes(place)
        self.sha256 = hashlib.sha256(data).hexdigest()
        if path is None and not self.sha256.startswith(DIGEST):
            raise ConfigError(f"{place} has SHA-256 {self.sha256}, not {DIGEST}...; fetch it again, or give a path")
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            with warnings.catch_warnings():  # lpips asks torchvision in its old way
                warnings.simplefilter("ignore", UserWarning)
                network: Any = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
            for name, parameter in network.net.named_parameters():  # slice2.3.weight is features.3.weight
                parameter.data.copy_(state[f"features.{name.partition('.')[2]}"])
        except (pickle.UnpicklingError, RuntimeError, TypeError, KeyError, EOFError) as error:
            raise ConfigError(
                f"{place} is no state dict of torchvision's AlexNet ({error}); give its {ALEXNET_FILE}"
            ) from error
        self._network = network.to(device)
        self.device = torch.device(device)

    def to(self, device: torch.device) -> PerceptualNetwork:
        """Itself, moved."""
        self._network.to(device)
        self.device = device
        return self

    @property
    def stamp(self) -> dict[str, str | int | float]:
        """What a distance depends on besides the pictures; LPIPS is LPIPS only with the known weights."""
        known = self.sha256.startswith(DIGEST)
        name = "LPIPS 0.1, AlexNet" if known else f"LPIPS 0.1 heads on AlexNet {self.sha256[:8]}"
        return {"distance": name, "weights": self.sha256, "std": "population"}

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) each, in [0, 1], to (B,) float32."""
        found: torch.Tensor = self._network(a.float().to(self.device), b.float().to(self.device), normalize=True)
        return found.flatten()


def perceptual_distances(images: Images, network: PerceptualNetwork) -> npt.NDArray[np.float64]:
    """LPIPS between neighbouring frames, (P, F - 1) float64.

    Args:
        images: as of :func:`smooth.evaluate.istd.istd`, with three channels and F >= 2 frames.
        network: the distance.

    Raises:
        ValueError: another shape or dtype, or floats outside [0, 1].
    """
    rows = []
    for strip in unit_pictures(images):  # (F, H, W, 3) or (F, 3, H, W)
        pictures = torch.tensor(strip, dtype=torch.float32)
        pictures = pictures.permute(0, 3, 1, 2) if pictures.shape[3] == 3 else pictures
        if pictures.shape[1] != 3:
            raise ValueError(f"LPIPS is of pictures of three channels, got frames of {tuple(strip.shape)}")
        rows.append(network(pictures[:-1], pictures[1:]).cpu().double().numpy())
    return np.stack(rows)


def lpips_istd(images: Images, network: PerceptualNetwork, seed: int = 0) -> Interval:
    """LPIPS-ISTD: mean over prompts of the deviation of :func:`perceptual_distances`, with its 95 % interval."""
    return bootstrap(deviation(perceptual_distances(images, network)), seed)
