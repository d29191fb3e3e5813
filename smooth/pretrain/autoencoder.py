"""First stage: the KL autoencoder (L1 + L2 reconstruction, small KL term)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from smooth.pretrain.architecture import build_autoencoder
from smooth.pretrain.corpus import Corpus, to_batch
from smooth.pretrain.runner import Budget, Checkpoint, autocast, set_rate

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

KL_WEIGHT = 5e-4  # of the KL divergence per latent element, in nats


def train_autoencoder(
    corpus: Corpus, budget: Budget, folder: Path, device: torch.device
) -> tuple[AutoencoderKL, float]:
    """Train, or go on with, the autoencoder; return it in eval mode and the seconds it took.

    Its ``scaling_factor`` is set so that latents of the corpus have unit standard deviation.
    """
    torch.manual_seed(0)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=budget.learning_rate, weight_decay=1e-4)
    checkpoint = Checkpoint(folder / "autoencoder.pt", {"model": model, "optimizer": optimizer})
    step = checkpoint.resume()
    pictures = corpus.pictures.reshape(-1, *corpus.pictures.shape[2:])
    step_fn = torch.compile(_loss) if device.type == "cuda" else _loss
    while (progress := budget.progress(step, checkpoint.elapsed)) < 1:
        indices = np.random.default_rng((1, step)).integers(len(pictures), size=budget.batch_size)
        batch = to_batch(pictures[np.sort(indices)], device).contiguous(memory_format=torch.channels_last)
        set_rate(optimizer, budget.rate(step, progress))
        with autocast(device):
            loss, reconstruction = step_fn(model, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            psnr = -10 * torch.log10(reconstruction / 4)  # pixels span 2 in [-1, 1]
            print(f"autoencoder {step} ({progress:.0%}) {psnr:.2f} dB, {checkpoint.elapsed:.0f} s", flush=True)
        checkpoint.save(step)
    checkpoint.save(step, force=True)
    seconds = checkpoint.elapsed
    model.eval().requires_grad_(False)
    sample = encode(model, pictures[:: max(1, len(pictures) // 4096)], device)
    model.register_to_config(scaling_factor=float(1 / sample.chunk(2, dim=1)[0].std()))
    return model, seconds


def _loss(model: AutoencoderKL, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    posterior = model.encode(batch).latent_dist
    decoded = model.decode(posterior.sample()).sample.float()
    squared = functional.mse_loss(decoded, batch)
    kl = posterior.kl().sum() / posterior.mean.numel()
    return functional.l1_loss(decoded, batch) + squared + KL_WEIGHT * kl, squared.detach()


@torch.inference_mode()
def encode(
    model: AutoencoderKL, pictures: npt.NDArray[np.uint8], device: torch.device, batch_size: int = 256
) -> torch.Tensor:
    """Posterior moments (mean and log-variance) of pictures: (N, 2C, H, W) float32 on ``device``."""
    parts = []
    for start in range(0, len(pictures), batch_size):
        batch = to_batch(pictures[start : start + batch_size], device)
        with autocast(device):
            parts.append(model.encode(batch).latent_dist.parameters.float())
    return torch.cat(parts)


@torch.inference_mode()
def held_out_psnr(model: AutoencoderKL, corpus: Corpus, device: torch.device) -> float:
    """PSNR in dB over all held-out pictures, decoding posterior means, pixels in [0, 255] uint8."""
    pictures = corpus.pictures.reshape(-1, *corpus.pictures.shape[2:])
    squared = 0.0
    for start in range(0, len(pictures), 256):
        block = pictures[start : start + 256]
        decoded = model.decode(model.encode(to_batch(block, device)).latent_dist.mode()).sample
        restored = decoded.add(1).mul(127.5).round().clamp(0, 255).permute(0, 2, 3, 1).cpu().numpy()
        squared += float(((restored - block.astype(np.float32)) ** 2).sum(dtype=np.float64))
    return float(10 * np.log10(255**2 / (squared / pictures.size)))
