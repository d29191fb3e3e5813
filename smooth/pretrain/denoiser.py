"""Second stage: the UNet and its text encoder, on latents of the trained autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.training_utils import EMAModel
from torch.nn import functional

from smooth.pretrain.architecture import build_denoiser, build_scheduler, build_text_encoder, build_tokenizer
from smooth.pretrain.autoencoder import encode
from smooth.pretrain.corpus import Corpus
from smooth.pretrain.runner import Budget, Checkpoint, autocast, set_rate

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTokenizer

CAPTION_DROPOUT = 0.1  # empty prompt, for classifier-free guidance
SHORT_CAPTION = 0.3  # skin tone left out of the caption, for the noise to choose
EMA_DECAY = 0.9995
SAMPLES_EVERY = 2000


class Denoiser(torch.nn.Module):
    """UNet and text encoder as one module: (noisy latents, timesteps, token ids) to predicted noise."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = build_denoiser()
        self.text_encoder = build_text_encoder(tokenizer)

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predict the noise: (B, C, H, W), (B,) int64, (B, L) int64 to (B, C, H, W)."""
        states = self.text_encoder(tokens).last_hidden_state
        predicted: torch.Tensor = self.unet(latents, timesteps, encoder_hidden_states=states).sample
        return predicted


def train_denoiser(
    vae: AutoencoderKL,
    corpus: Corpus,
    budget: Budget,
    folder: Path,
    device: torch.device,
    draw_samples: Callable[[StableDiffusionPipeline, int], None],
) -> tuple[StableDiffusionPipeline, float]:
    """Train, or go on with, UNet and text encoder; return the pipeline of the averaged weights and the seconds.

    Loss: mean squared error of the predicted noise, timesteps uniform. ``draw_samples`` is called with
    a pipeline and the step every 2,000 steps.
    """
    torch.manual_seed(0)
    tokenizer = build_tokenizer([drawing.caption for drawing in corpus.drawings])
    captions = Captions(tokenizer, corpus, device)
    model = Denoiser(tokenizer).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=budget.learning_rate, weight_decay=1e-2, fused=True)
    ema = EMAModel(model.parameters(), decay=EMA_DECAY, use_ema_warmup=True, power=0.75, foreach=True)
    checkpoint = Checkpoint(folder / "denoiser.pt", {"model": model, "optimizer": optimizer, "ema": ema})
    moments = encode(vae, corpus.pictures.reshape(-1, *corpus.pictures.shape[2:]), device).half()
    step = checkpoint.resume()
    ema.to(device)  # its state dict was loaded on the CPU
    styles = corpus.pictures.shape[1]
    alphas_cumprod = build_scheduler().alphas_cumprod.to(device)
    forward = torch.compile(model) if device.type == "cuda" else model
    running: torch.Tensor | None = None
    while (progress := budget.progress(step, checkpoint.elapsed)) < 1:
        draw = torch.Generator(device).manual_seed(step)
        index = torch.randint(len(moments), (budget.batch_size,), device=device, generator=draw)
        mean, log_variance = moments[index].float().chunk(2, dim=1)
        posterior_noise = torch.randn(mean.shape, device=device, generator=draw)
        latents = (mean + torch.exp(0.5 * log_variance) * posterior_noise) * vae.config.scaling_factor
        noise = torch.randn(mean.shape, device=device, generator=draw)
        timesteps = torch.randint(len(alphas_cumprod), (len(index),), device=device, generator=draw)
        alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with autocast(device):
            predicted = forward(noisy, timesteps, captions.draw(index // styles, draw))
        loss = functional.mse_loss(predicted.float(), noise)
        set_rate(optimizer, budget.rate(step, progress))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())
        running = loss.detach() if running is None else running.lerp(loss.detach(), 0.01)
        step += 1
        if step % 200 == 0:
            print(f"denoiser {step} ({progress:.0%}) loss {running:.4f}, {checkpoint.elapsed:.0f} s", flush=True)
        checkpoint.save(step)
        if step % SAMPLES_EVERY == 0:
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            draw_samples(assemble(vae, model, tokenizer), step)
            ema.restore(model.parameters())
            model.train()
    checkpoint.save(step, force=True)
    seconds = checkpoint.elapsed
    ema.copy_to(model.parameters())
    return assemble(vae, model, tokenizer), seconds


class Captions:
    """Token ids of every drawing's full, short and empty caption, drawn per sample."""

    def __init__(self, tokenizer: CLIPTokenizer, corpus: Corpus, device: torch.device) -> None:
        def tokenize(texts: Sequence[str]) -> torch.Tensor:
            encoded = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
            ids: torch.Tensor = encoded.input_ids
            return ids.to(device)

        self.full = tokenize([drawing.caption for drawing in corpus.drawings])
        self.short = tokenize([drawing.short_caption for drawing in corpus.drawings])
        self.empty = tokenize([""])

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Token ids (B, L) of drawings ``index`` (B,), with short captions and dropout at their rates."""
        chance = torch.rand(2, len(index), 1, device=index.device, generator=generator)
        tokens = torch.where(chance[0] < SHORT_CAPTION, self.short[index], self.full[index])
        return torch.where(chance[1] < CAPTION_DROPOUT, self.empty, tokens)


def assemble(vae: AutoencoderKL, model: Denoiser, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """An ordinary ``StableDiffusionPipeline`` of the parts (they are shared, not copied)."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder.eval(),
        tokenizer=tokenizer,
        unet=model.unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
