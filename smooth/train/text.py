"""What the UNet is told: cached embeddings as they are, or cached token ids through the frozen text encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smooth.data.dataset import LatentsDataset

Embed = Callable[[Tensor], Tensor]  # texts of a data set, Bx... => embeddings BxLxD float32


def embedder(dataset: LatentsDataset, text_encoder: nn.Module, device: torch.device) -> Embed:
    """How the texts of ``dataset`` become embeddings; ``text_encoder`` goes to ``device`` only where it is needed."""
    if not dataset.holds_token_ids:
        return _as_they_are
    text_encoder.to(device)

    @torch.no_grad()
    def encode(ids: Tensor) -> Tensor:
        # As diffusers does it for encoders without an attention mask; others can't be cached as token ids.
        embeddings: Tensor = text_encoder(ids.to(device))[0]
        return embeddings.float()

    return encode


def _as_they_are(embeddings: Tensor) -> Tensor:
    return embeddings
