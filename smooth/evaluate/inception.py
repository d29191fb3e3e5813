"""Inception-v3 with the weights of the published FID, as torch-fidelity ships them; no package holds the file itself.

Network, resize and input scale are torch-fidelity's own, so values agree with its. The file is read without unpickling
anything but tensors. Other weights in its format serve too, but then the distance isn't called FID.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smooth.config import ConfigError
from smooth.evaluate.features import checked
from smooth.evaluate.networks import INCEPTION_FILE, Contents, Network


class InceptionNetwork:
    """Maps pictures to 2048 numbers each: torch-fidelity's last pooling."""

    def __init__(self, network: Network, contents: Contents, device: str | torch.device = "cpu") -> None:
        """Build it of its weights.

        Raises:
            ConfigError: they aren't tensors of this network.
        """
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.device = torch.device(device)
        try:
            state = torch.load(io.BytesIO(contents["weights"].data), map_location="cpu", weights_only=True)
            # torch-fidelity unpickles whatever a file holds, so it is given one that was written here of tensors alone.
            clean = io.BytesIO()
            torch.save(state, clean)
            clean.seek(0)
            built: Any = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=clean)
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError) as error:
            raise ConfigError(
                f"evaluate.inception_weights (SHA-256 {network.stamp['weights']}) is no state dict of torch-fidelity's "
                f"Inception-v3: {str(error).splitlines()[0]}; give its {INCEPTION_FILE}"
            ) from error
        self._network = built.to(self.device)

    @torch.inference_mode()
    def __call__(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(B, H, W, 3) uint8 to (B, 2048) float32.

        Raises:
            ValueError: another shape or dtype.
        """
        x = torch.tensor(checked(pictures), device=self.device).permute(0, 3, 1, 2)
        (found,) = self._network(x)
        return np.asarray(found.cpu().numpy())
