"""Pictures drawn while training: always the same prompts and noises, so that progress can be seen."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torch import Tensor

from smooth.data.dataset import LatentsDataset
from smooth.data.draws import Stream, generator
from smooth.train.engine import Conditioned
from smooth.train.text import Embed

PICTURES = 8
STEPS = 12  # enough to see what is drawn; quality is measured by the evaluate stage


class Validator:
    """Samples the first captions of the data set's commonest size with fixed noises by a few DDIM steps."""

    def __init__(
        self,
        scheduler: DDIMScheduler,
        dataset: LatentsDataset,
        embed: Embed,
        *,
        seed: int,
        guidance: float,
        device: torch.device,
    ) -> None:
        self.scheduler = scheduler
        self.guidance = guidance
        self.scaling_factor = dataset.scaling_factor
        ends = [(int(dataset.starts[size.start]), int(dataset.starts[size.stop])) for size in dataset.groups_of_sizes]
        (first, end), shape = max(
            zip(ends, dataset.latent_shapes, strict=True), key=lambda size: size[0][1] - size[0][0]
        )
        rows = range(first, min(first + PICTURES, end))
        draws = [generator(seed, row, Stream.VALIDATION).standard_normal(shape) for row in rows]
        self.noise = torch.from_numpy(np.stack(draws)).float().to(device)
        shown = [dataset.row(row) for row in rows]
        texts = torch.from_numpy(np.stack([row.text for row in shown]))
        self.text = embed(texts.to(dataset.null_text.dtype)).to(device)
        self.null_text = embed(dataset.null_text[None]).to(device).expand_as(self.text)

        # As the network takes them in guided sampling: all without their captions, then all with them.
        told = [dataset.added(row, without_text=without) for without in (True, False) for row in shown]
        self.added = {name: torch.stack([one[name] for one in told]).to(device) for name in told[0]}

    @torch.no_grad()
    def sample(self, network: Conditioned) -> Tensor:
        """Denoised latents, BxCxHxW float32, with classifier-free guidance."""
        self.scheduler.set_timesteps(STEPS)
        latents: Tensor = self.noise * self.scheduler.init_noise_sigma
        both_texts = torch.cat([self.null_text, self.text])
        for timestep in self.scheduler.timesteps:
            timesteps = timestep.to(latents.device).expand(len(both_texts))
            free, guided = network(torch.cat([latents, latents]), timesteps, both_texts, self.added).chunk(2)
            output = free + self.guidance * (guided - free)
            latents = self.scheduler.step(output, timestep, latents).prev_sample
        return latents

    @torch.no_grad()
    def picture(self, latents: Tensor, vae: AutoencoderKL) -> bytes:
        """The decoded latents as one PNG, in rows of four."""
        scaled = (latents / self.scaling_factor).to(vae.device, vae.dtype)
        decoded = torch.cat([vae.decode(one[None]).sample for one in scaled])  # together they take more than a step
        pixels = ((decoded.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        count, height, width, _ = pixels.shape
        columns = min(4, count)
        grid = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), "white")
        for number, picture in enumerate(pixels):
            grid.paste(Image.fromarray(picture), ((number % columns) * width, (number // columns) * height))
        buffer = io.BytesIO()
        grid.save(buffer, "PNG")
        return buffer.getvalue()
