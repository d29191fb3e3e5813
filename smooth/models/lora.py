"""The Smooth LoRA: put on a UNet, and saved in the format that plain diffusers loads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from smooth import store
from smooth.config import ConfigError, LoraConfig
from smooth.models import WEIGHTS_NAME

ADAPTER = "default"


def add_lora(unet: UNet2DConditionModel, config: LoraConfig, seed: int) -> list[nn.Parameter]:
    """Freeze ``unet``, add a trainable adapter that starts as the identity, return its parameters.

    The start depends on the seed alone, so every rank builds the same adapter.

    Raises:
        ConfigError: no layer of the UNet is named by ``train.lora.targets``.
    """
    unet.requires_grad_(False)
    settings = PeftLoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), init_lora_weights="gaussian"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            unet.add_adapter(settings, ADAPTER)
        except ValueError as error:
            raise ConfigError(f"train.lora.targets={list(config.targets)} does not fit model.base: {error}") from error
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def adapter_names(unet: UNet2DConditionModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of the adapter's parameters, under the names that peft saves them by."""
    return cast(dict[str, Tensor], get_peft_model_state_dict(unet, state_dict=weights, adapter_name=ADAPTER))


def save_lora(folder: str, weights: dict[str, Tensor], unet: UNet2DConditionModel) -> str:
    """Write ``weights`` (of :func:`adapter_names`) to ``pytorch_lora_weights.safetensors``; return its path.

    The adapter's settings (rank, alpha, targets) go into the file's metadata: without them diffusers
    takes alpha = rank. The file appears whole or not at all, on any fsspec path.
    """
    path = store.join(folder, WEIGHTS_NAME)
    store.write_bytes(path, lora_file(weights, unet.peft_config[ADAPTER].to_dict()))
    return path


def lora_file(weights: Mapping[str, Tensor], settings: Mapping[str, object]) -> bytes:
    """The bytes of a file as diffusers saves a UNet's adapter: peft's names, its settings in the metadata.

    The same adapter gives the same bytes, by which models are told apart.
    """
    metadata = {key: _plain(value) for key, value in settings.items()}
    with tempfile.TemporaryDirectory(prefix="smooth-lora-") as temporary:
        StableDiffusionPipeline.save_lora_weights(
            temporary, unet_lora_layers=dict(weights), unet_lora_adapter_metadata=metadata
        )
        return _ordered(Path(temporary, WEIGHTS_NAME).read_bytes())


def _ordered(data: bytes) -> bytes:
    """The same safetensors file with its metadata by name: they come in random order (safetensors issue 584)."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = dict(sorted(header.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[start:]


def _plain(value: object) -> object:
    """A set as a sorted list: sets have no order."""
    return sorted(value) if isinstance(value, set) else value
