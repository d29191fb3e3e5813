"""The networks of a base model without their weights: built from their configs, on tensors that hold no numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from smooth.config import resolve_model
from smooth.train.rehearsal import Shapes

ARCHITECTURES = files("smooth") / "plan" / "architectures"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class PlanError(ValueError):
    """There is no plan for this run, or the run can't fit; the message names the knobs."""


@dataclass(frozen=True)
class Architecture:
    """Configs of a pipeline's networks, as their ``config.json`` have them."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...]

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of the text that the UNet is told."""
        return int(self.text_encoders[0]["max_position_embeddings"]), int(self.unet["cross_attention_dim"])

    @property
    def added_widths(self) -> dict[str, int]:
        """Widths of what the UNet is told besides the text: the pooled embedding and sizes, where it wants them."""
        if self.unet.get("addition_embed_type") != "text_time":
            return {}
        time_ids = 6 * int(self.unet["addition_time_embed_dim"])
        return {"text_embeds": int(self.unet["projection_class_embeddings_input_dim"]) - time_ids, "time_ids": 6}

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of so many pixels."""
        factor = 2 ** (len(self.vae["block_out_channels"]) - 1)
        return int(self.vae["latent_channels"]), height // factor, width // factor

    def shapes(self, height: int, width: int) -> Shapes:
        """What the UNet is given for a sample of so many pixels."""
        return Shapes(self.latent_shape(height, width), self.text_shape, self.added_widths)

    def build_unet(self) -> UNet2DConditionModel:
        """The UNet on the default device; under a fake or meta one it takes no memory."""
        network: UNet2DConditionModel = UNet2DConditionModel.from_config(self.unet)
        return network

    def build_vae(self) -> AutoencoderKL:
        """The autoencoder on the default device."""
        network: AutoencoderKL = AutoencoderKL.from_config(self.vae)
        return network

    def vae_parameters(self) -> int:
        """Number of the autoencoder's parameters."""
        with torch.device("meta"):
            return count(self.build_vae())

    def text_parameters(self) -> int:
        """Number of all text encoders' parameters."""
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
        total = 0
        for values in self.text_encoders:
            name = values["architectures"][0]
            if name not in classes:
                raise PlanError(f"the planner knows no text encoder {name}; there are: {', '.join(classes)}")
            with torch.device("meta"):
                total += count(classes[name](CLIPTextConfig.from_dict(values)))
        return total


def count(module: nn.Module) -> int:
    """Number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def named(name: str) -> Architecture:
    """An architecture that comes with the planner: ``sd15`` or ``sdxl``."""
    return _of(json.loads((ARCHITECTURES / f"{name}.json").read_text()))


def find(base: str, revision: str | None = None) -> Architecture:
    """The architecture of ``model.base``: a folder's, a known hub id's, or one that the hub (or its cache) tells.

    Raises:
        PlanError: a hub id that is not known here and can't be reached, or a pipeline of other parts.
    """
    folder = Path(resolve_model(base))
    if not folder.is_dir():
        for file in ARCHITECTURES.iterdir():
            described = json.loads(file.read_text())
            if base in described["names"]:
                return _of(described)
        folder = _configs_from_hub(base, revision)
    parts = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/config.json")}
    if missing := {"unet", "vae", "text_encoder"} - parts.keys():
        raise PlanError(
            f"model.base={base} has no {' and no '.join(sorted(missing))}; give a Stable Diffusion pipeline"
        )
    return _of(parts)


def _of(parts: Mapping[str, Any]) -> Architecture:
    return Architecture(parts["unet"], parts["vae"], tuple(parts[name] for name in TEXT_ENCODERS if name in parts))


def _configs_from_hub(base: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, revision=revision, allow_patterns=["*/config.json"]))
    except (OSError, ValueError) as error:
        known = [name for file in ARCHITECTURES.iterdir() for name in json.loads(file.read_text())["names"]]
        raise PlanError(
            f"the configs of model.base={base} can't be read ({error}); known without the hub: {', '.join(known)}, "
            "or give a diffusers folder"
        ) from error
