"""What a fine-tune trains of a UNet, and the artifact that it becomes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from smooth import store
from smooth.config import TrainConfig
from smooth.models import UNET, WEIGHTS_NAME, lora, trained_files


def choose(unet: UNet2DConditionModel, config: TrainConfig, seed: int) -> dict[str, nn.Parameter]:
    """The parameters that ``train.method`` trains, by name: a new LoRA's, or all. The others are frozen.

    Raises:
        ConfigError: no layer of the UNet is named by ``train.lora.targets``.
    """
    if config.method == "lora":
        lora.add_lora(unet, config.lora, seed)
    else:
        unet.requires_grad_(True)
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """The whole weight's shape, also where ZeRO-3 has left a rank only its share."""
    whole: Any = getattr(parameter, "ds_shape", parameter.shape)
    return torch.Size(whole)


def save(folder: str, weights: Mapping[str, Tensor], unet: UNet2DConditionModel, config: TrainConfig) -> None:
    """Write trained ``weights`` (whole, by parameter name) into ``folder`` as diffusers loads them.

    A LoRA becomes ``pytorch_lora_weights.safetensors``, a whole UNet the folder ``unet`` of a pipeline.
    """
    if config.method == "lora":
        lora.save_lora(folder, lora.adapter_names(unet, weights), unet)
        return
    whole = UNet2DConditionModel.from_config(unet.config)
    whole.load_state_dict(dict(weights))
    with tempfile.TemporaryDirectory(prefix="smooth-unet-") as temporary:
        whole.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            with path.open("rb") as source, store.writing(store.join(folder, UNET, path.name)) as target:
                shutil.copyfileobj(source, target)


def attach(pipeline: StableDiffusionPipeline, folder: str) -> Callable[[bool], None]:
    """Load what :func:`save` wrote beside the base; the function returned switches it on (True) or off.

    Raises:
        ArtifactError: the folder holds no trained weights.
        SafetensorError: the LoRA's file is broken.
    """
    names = trained_files(folder)
    with tempfile.TemporaryDirectory(prefix="smooth-trained-") as temporary:
        for name in names:
            path = Path(temporary, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(store.read_bytes(store.join(folder, name)))
        if names == [WEIGHTS_NAME]:
            pipeline.load_lora_weights(temporary, use_safetensors=True)  # never a pickle
            return lambda on: pipeline.enable_lora() if on else pipeline.disable_lora()
        base = pipeline.unet
        tuned = UNet2DConditionModel.from_pretrained(Path(temporary, UNET), dtype=base.dtype, use_safetensors=True)
        tuned.to(base.device).requires_grad_(False).eval()

    def switch(on: bool) -> None:
        pipeline.unet = tuned if on else base

    return switch
