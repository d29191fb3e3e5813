"""The base model's VAE and text encoder: pixels and captions in, half precision out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch

from smooth.models.pipeline import load_pipeline, text_encoders

Texts = dict[str, npt.NDArray[Any]]

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class Encoder:
    """The networks on one device."""

    def __init__(
        self, base: str, revision: str | None, cache_text: bool, *, batch_size: int = 1, cuda: bool = False
    ) -> None:
        """Load ``base``; ``cache_text`` False gives token ids instead of embeddings.

        Every call of a network sees exactly ``batch_size`` rows (short batches are padded): kernels
        round differently for different shapes, and a row's numbers must not depend on its company.

        Raises:
            ValueError: the text encoder wants more than token ids, and ``cache_text`` is False.
        """
        self.device = torch.device("cuda" if cuda else "cpu")
        # Any: pipelines set their parts as attributes at run time, unknown to type checkers.
        self.pipeline = cast(Any, load_pipeline(base, revision=revision, device=self.device))
        self.pipeline.unet = None  # it has no part in this and is most of the memory
        if not cache_text and len(text_encoders(self.pipeline)) > 1:
            raise ValueError(
                f"latents.cache_text=false caches the token ids of one text encoder, and {base} has two; "
                "set latents.cache_text=true"
            )
        if not cache_text and getattr(self.pipeline.text_encoder.config, "use_attention_mask", False):
            raise ValueError(
                f"latents.cache_text=false caches token ids, and the text encoder of {base} wants an attention mask, "
                "too; set latents.cache_text=true"
            )
        self.cache_text = cache_text
        self.batch_size = batch_size

    @property
    def scaling_factor(self) -> float:
        """What latents are multiplied with before the UNet sees them; the moments are not."""
        return float(self.pipeline.vae.config.scaling_factor)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape (C, H, W) of the latents of a picture of so many pixels.

        Raises:
            ValueError: the VAE's downsampling does not divide them.
        """
        factor = int(self.pipeline.vae_scale_factor)
        for side in (height, width):
            if side % factor:
                raise ValueError(
                    f"{side} pixels are not a multiple of the VAE's downsampling {factor}; use "
                    f"{side // factor * factor or factor} in latents.image_size or latents.buckets"
                )
        return int(self.pipeline.vae.config.latent_channels), height // factor, width // factor

    def hashes(self) -> dict[str, str]:
        """See :func:`network_hashes`."""
        return network_hashes(self.pipeline)

    @torch.inference_mode()
    def moments(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        """Mean and log-variance (clamped to -30..20 as diffusers samples it) of the posterior.

        (N, height, width, 3) uint8 -> (N, 2C, H, W) float16, not multiplied by the scaling factor.

        Raises:
            MemoryError: the device has no room for a batch.
        """
        return np.concatenate([self._moments(pixels[first:last]) for first, last in self._batches(len(pixels))])

    def _moments(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        padding = np.repeat(pixels[-1:], self.batch_size - len(pixels), axis=0)
        padded = torch.from_numpy(np.concatenate([pixels, padding])).to(self.device)
        scaled = padded.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        try:
            posterior = self.pipeline.vae.encode(scaled).latent_dist
        except torch.OutOfMemoryError as error:
            _, _, height, width = scaled.shape
            raise MemoryError(
                f"the VAE has no room for latents.batch_size={self.batch_size} pictures of {height} x {width} pixels "
                f"on {self.device}; lower the batch size"
            ) from error
        moments = torch.cat([posterior.mean, posterior.logvar], dim=1)[: len(pixels)]
        # Values beyond half precision become infinite here, and are found by the caller.
        half: npt.NDArray[np.float16] = moments.to(torch.float16).cpu().numpy()
        return half

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Texts:
        """What the UNet is told of each caption, by column; long captions are cut as in sampling.

        ``text``: embeddings (N, L, D) float16, or token ids (N, L) int32. ``pooled``: (N, P) float16, where the
        pipeline has it.
        """
        if not self.cache_text:
            tokenizer = self.pipeline.tokenizer
            tokens = tokenizer(
                list(captions), padding="max_length", max_length=tokenizer.model_max_length, truncation=True
            ).input_ids
            return {"text": np.asarray(tokens, np.int32)}
        batches = [self._texts(captions[first:last]) for first, last in self._batches(len(captions))]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _texts(self, captions: Sequence[str]) -> Texts:
        padded = [*captions, *[captions[-1]] * (self.batch_size - len(captions))]
        encoded, _ = self._encode(padded, guided=False)
        return {name: value[: len(captions)] for name, value in encoded.items()}

    @torch.inference_mode()
    def no_text(self) -> Texts:
        """What stands for no prompt in guided sampling: :meth:`texts` of one, without its first axis."""
        if not self.cache_text:
            return {"text": self.texts([""])["text"][0]}
        # As the pipeline does it: some encode the empty prompt, some take zeros.
        _, unguided = self._encode([""] * self.batch_size, guided=True)
        return {name: value[0] for name, value in unguided.items()}

    def _encode(self, captions: list[str], guided: bool) -> tuple[Texts, Texts]:
        """Captions and, where ``guided``, what stands for none beside each."""
        encoded = self.pipeline.encode_prompt(
            captions, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )
        # Text and pooled text one after the other, each followed by that of no prompt, which is None if not guided.
        columns = ("text", "pooled")[: len(encoded) // 2]
        captioned, unguided = (
            {
                name: value.to(torch.float16).cpu().numpy()
                for name, value in zip(columns, values, strict=True)
                if value is not None
            }
            for values in (encoded[::2], encoded[1::2])
        )
        return captioned, unguided

    def _batches(self, rows: int) -> Iterator[tuple[int, int]]:
        return ((first, min(first + self.batch_size, rows)) for first in range(0, rows, self.batch_size))

    @torch.inference_mode()
    def pictures(self, moments: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8]:
        """Decode the means of posteriors: (N, 2C, H, W) float16 -> (N, height, width, 3) uint8."""
        means = torch.from_numpy(moments).to(self.device, torch.float32).chunk(2, dim=1)[0]
        decoded = torch.cat([self.pipeline.vae.decode(mean[None]).sample for mean in means])
        pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
        shown: npt.NDArray[np.uint8] = pixels.cpu().numpy()
        return shown


def network_hashes(pipeline: StableDiffusionPipeline) -> dict[str, str]:
    """Digests of what decides cached numbers: ``vae``, and each text encoder with its tokenizer."""
    digests = {"vae": _digest(pipeline.vae)}
    for name in text_encoders(pipeline):
        tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
        vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
        digests[name] = _digest(getattr(pipeline, name), vocabulary.encode())
    return digests


def _digest(module: torch.nn.Module, extra: bytes = b"") -> str:
    digest = hashlib.sha256(extra)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
