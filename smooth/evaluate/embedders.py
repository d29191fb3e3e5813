"""CLIP and DINOv2 by transformers: for CMMD, the CLIP score and FD-DINOv2.

Pictures are resized whole, as the metrics' authors do, whatever the model's processor would: to 224 pixels a side of
DINOv2 (dgm-eval, arXiv 2306.04675), where its processor cuts the rim off; to CLIP's own size (CMMD, arXiv 2401.09603),
which of square pictures is its processor's, too, and so what the CLIP score (arXiv 2104.08718) is defined on. Bicubic,
by Pillow, to 8 bits. Mean and deviation are the processor's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from smooth.evaluate.features import checked
from smooth.evaluate.networks import Contents, Network


class EmbeddingNetwork:
    """Maps pictures to the numbers of CLIP or DINOv2."""

    def __init__(self, network: Network, contents: Contents, device: str | torch.device = "cpu") -> None:
        """Load it from its files, wherever they were found."""
        import transformers

        self._kind, self._size = network.kind, int(network.stamp["feature_input"])
        self.device = torch.device(device)
        kind: Any = {"clip": transformers.CLIPModel, "dinov2": transformers.Dinov2Model}[network.kind]
        with tempfile.TemporaryDirectory() as folder:
            for name, data in contents.items():
                Path(folder, name).write_bytes(data.data)
            model = kind.from_pretrained(folder, weights_only=True, local_files_only=True, dtype=torch.float32)
            processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            if network.kind == "clip":
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._network = model.eval().to(self.device)
        self._mean, self._deviation = (
            torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std)
        )

    @torch.inference_mode()
    def __call__(self, pictures: npt.NDArray[np.uint8], prompts: list[str] | None = None) -> npt.NDArray[np.float32]:
        """(B, H, W, 3) uint8 to (B, columns) float32; of CLIP of unit length, then the cosine to the prompt, or 0.

        Raises:
            ValueError: another shape or dtype.
        """
        pixels = self._pixels(checked(pictures)).to(self.device)
        if self._kind == "dinov2":
            return np.asarray(self._network(pixel_values=pixels).last_hidden_state[:, 0].float().cpu().numpy())
        images = _unit(self._network.get_image_features(pixel_values=pixels))
        cosines = torch.zeros(len(images), 1, device=self.device)
        if prompts is not None:
            tokens = self._tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self.device)
            texts = _unit(self._network.get_text_features(**tokens))
            cosines = (images * texts).sum(1, keepdim=True)
        return np.asarray(torch.cat([images, cosines], dim=1).cpu().numpy())

    def _pixels(self, pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
        """(B, H, W, 3) uint8 to what the network takes, (B, 3, size, size) float32."""
        size = (self._size, self._size)
        resized = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in pictures]
        pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
        return (pixels - self._mean) / self._deviation


def _unit(output: Any) -> torch.Tensor:
    """Embeddings of length 1; transformers gives them alone or, since its fifth release, within an output."""
    embeddings: torch.Tensor = getattr(output, "pooler_output", output)
    return torch.nn.functional.normalize(embeddings.float(), dim=1)
