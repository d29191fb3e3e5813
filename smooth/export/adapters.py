"""LoRA files: read in diffusers' or kohya's format, written in either. Tensors pass through bit by bit."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya, convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from smooth import store
from smooth.export import ExportError
from smooth.models import WEIGHTS_NAME
from smooth.models.lora import lora_file

PREFIX = "unet."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
KOHYA = "lora_unet_"
# Original Stable Diffusion's names, as kohya-ss trains XL: which layer of diffusers one is, only the UNet tells.
ORIGINAL = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")


@dataclass(frozen=True)
class Adapter:
    """A LoRA of a UNet's layers: W + alpha / rank · up · down."""

    weights: Mapping[str, Tensor]
    """by peft's names: down ``MODULE.lora_A.weight`` (rank x inputs), up ``MODULE.lora_B.weight`` (outputs x rank)"""
    settings: Mapping[str, Any]
    """of :class:`peft.LoraConfig`"""

    @property
    def modules(self) -> list[str]:
        """Names of the adapted layers in diffusers' UNet."""
        return sorted(name.removesuffix(DOWN) for name in self.weights if name.endswith(DOWN))

    def alpha(self, module: str) -> float:
        """The layer's alpha, as peft finds it."""
        pattern = self.settings.get("alpha_pattern") or {}
        return float(pattern.get(get_pattern_key(pattern, module), self.settings["lora_alpha"]))


def read(folder: str) -> Adapter:
    """Read ``pytorch_lora_weights.safetensors`` (its keys may be kohya's) from a folder on any fsspec path.

    Raises:
        ExportError: it is no safetensors file, no LoRA, or one of more than a UNet's layers.
    """
    source = store.join(folder, WEIGHTS_NAME)
    with tempfile.TemporaryDirectory(prefix="smooth-export-") as temporary:
        path = Path(temporary, WEIGHTS_NAME)
        path.write_bytes(store.read_bytes(source))
        try:
            with safe_open(path, framework="pt") as file:
                raw = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                metadata = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
        except SafetensorError as error:
            raise ExportError(f"{source} can't be read as safetensors: {error}") from error
    weights, alphas = _in_peft_names(raw, source)
    _check(weights, source)
    adapter = Adapter(weights, _settings(metadata, source) or _derived(weights, alphas))
    if adapter.settings.get("use_dora") or adapter.settings.get("use_rslora"):
        raise ExportError(f"{source} is a DoRA or rank-stabilised LoRA; only plain LoRAs can be exported")
    return adapter


def _in_peft_names(raw: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights by peft's names, and what kohya's format says of alpha by module."""
    if not all(name.startswith(KOHYA) for name in raw):
        return _without_prefix(convert_unet_state_dict_to_peft(raw)), {}
    if any(name.startswith(ORIGINAL) for name in raw):
        raise ExportError(
            f"{source} names its layers as the original Stable Diffusion does (input_blocks); load it by diffusers' "
            "load_lora_weights and save it again, then export that file"
        )
    try:
        named, alphas = StableDiffusionPipeline.lora_state_dict(dict(raw))
    except (KeyError, ValueError) as error:
        raise ExportError(f"{source} has kohya's names but is no whole LoRA: {error}") from error
    # diffusers names an alpha by a weight of old, with the same words for the layer.
    renamed = convert_unet_state_dict_to_peft({name.removesuffix(".alpha"): name for name in alphas})
    by_module = {name.removeprefix(PREFIX).removesuffix(DOWN): alphas[old] for name, old in renamed.items()}
    return _without_prefix(convert_unet_state_dict_to_peft(named)), by_module


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): weight for name, weight in weights.items()}


def _check(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse what is more, or less, than pairs of matrices beside a UNet's layers."""
    for name in weights:
        if name.startswith("text_encoder"):
            raise ExportError(f"{source} adapts a text encoder ({name}); only LoRAs of the UNet alone can be exported")
        if not name.endswith((DOWN, UP)):
            raise ExportError(f"{source} is no LoRA of a diffusers UNet: it holds {name}")
    modules = {name.removesuffix(DOWN).removesuffix(UP) for name in weights}
    for module in sorted(modules):
        down, up = weights.get(module + DOWN), weights.get(module + UP)
        if down is None or up is None or down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
            raise ExportError(f"{source} has no matching pair of weights for the layer {module}")
    if not modules:
        raise ExportError(f"{source} is empty")


def _settings(metadata: str | None, source: str) -> dict[str, Any] | None:
    """The adapter's settings from the file's metadata, if it has any."""
    if metadata is None:
        return None
    try:
        settings = {name.removeprefix(PREFIX): value for name, value in json.loads(metadata).items()}
        return {**LoraConfig(**settings).to_dict(), **settings}
    except (AttributeError, TypeError, ValueError) as error:
        raise ExportError(f"{source}: its metadata {LORA_ADAPTER_METADATA_KEY} are no settings of peft") from error


def _derived(weights: Mapping[str, Tensor], alphas: Mapping[str, float]) -> dict[str, Any]:
    """Settings for a file without: rank by shape; alpha is the rank where nothing is said, as in diffusers."""
    ranks = {name.removesuffix(DOWN): weight.shape[0] for name, weight in weights.items() if name.endswith(DOWN)}
    scales = {module: alphas.get(module, float(rank)) for module, rank in ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, scales))
    settings: dict[str, Any] = LoraConfig(
        r=int(rank),
        lora_alpha=alpha,
        target_modules=sorted(ranks),
        rank_pattern={f"^{module}": value for module, value in ranks.items() if value != rank},
        alpha_pattern={f"^{module}": value for module, value in scales.items() if value != alpha},
    ).to_dict()
    return settings


def diffusers_file(adapter: Adapter) -> bytes:
    """The file that ``pipe.load_lora_weights`` takes."""
    return lora_file(adapter.weights, adapter.settings)


def kohya_file(adapter: Adapter) -> bytes:
    """The file in the key format of kohya-ss, ComfyUI and A1111: ``lora_unet_…lora_down.weight``, ``.alpha``.

    Raises:
        ExportError: diffusers would read something else from it, so it would not mean the same everywhere.
    """
    weights = {f"{PREFIX}{name}": weight for name, weight in adapter.weights.items()}
    kohya: dict[str, Tensor] = convert_state_dict_to_kohya(weights)
    for module in adapter.modules:
        # diffusers' converter writes the rank. In double precision any alpha is kept exactly.
        kohya[f"{KOHYA}{module.replace('.', '_')}.alpha"] = torch.tensor(adapter.alpha(module), dtype=torch.float64)
    if len({adapter.alpha(module) for module in adapter.modules}) > 1:
        raise ExportError(
            "the LoRA has more than one alpha, which diffusers does not read from kohya's format; "
            "use --format diffusers"
        )
    back = convert_unet_state_dict_to_peft(StableDiffusionPipeline.lora_state_dict(dict(kohya))[0])
    if lost := sorted(set(weights) ^ set(back)):
        raise ExportError(f"kohya's format can't name {lost[0]} so that diffusers finds it; use --format diffusers")
    return save({name: weight.contiguous() for name, weight in kohya.items()}, metadata={"format": "pt"})
