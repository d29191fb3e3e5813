"""CLIP and DINOv2 by transformers, where their files are at hand: for CMMD, FD-DINOv2 and the CLIP score.

A model is a folder, or a hub id that Hugging Face's cache holds; nothing is fetched. Pictures are resized and
normalized by the model's own processor.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from smooth import store
from smooth.config import ConfigError, EvaluateConfig
from smooth.evaluate.features import checked

Kind = Literal["clip", "dinov2"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PUBLISHED: dict[Kind, str] = {"clip": "openai/clip-vit-large-patch14-336", "dinov2": "facebook/dinov2-large"}
METRICS: dict[Kind, tuple[str, ...]] = {"clip": ("CMMD", "CLIP score"), "dinov2": ("FD-DINOv2",)}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the second is read as tensors alone (weights_only)


@dataclass(frozen=True)
class Embedder:
    """A model that embeds pictures."""

    kind: Kind
    name: str
    """folder or hub id"""
    sha256: str
    """of its weights"""
    dimensions: int

    @property
    def columns(self) -> int:
        """Numbers a picture: the embedding, and of CLIP the cosine to its prompt."""
        return self.dimensions + (self.kind == "clip")

    @property
    def label(self) -> str:
        """What metrics by it are told apart by; empty for the published model, whose names they have alone."""
        if self.name == PUBLISHED[self.kind]:
            return ""
        return f" ({self.name if _is_hub_id(self.name) else self.sha256[:8]})"

    @property
    def stamp(self) -> dict[str, str | int | float]:
        """What a value depends on besides the pictures."""
        shown = self.name if _is_hub_id(self.name) else self.kind
        return {"features": shown, "weights": self.sha256, "resize": "the model's processor"}


def find(config: EvaluateConfig) -> tuple[Embedder, ...]:
    """Those that are at hand: named by the config, or the published ones in the cache.

    Raises:
        ConfigError: one is named and not there, or is something else.
    """
    return tuple(embedder for kind in KINDS if (embedder := _find(kind, getattr(config, kind))) is not None)


def missing(kind: Kind) -> str:
    """Why its metrics are unavailable, and what to do."""
    return (
        f"needs {PUBLISHED[kind]}, which Hugging Face's cache does not hold: run `hf download {PUBLISHED[kind]}` "
        f"before the evaluation, or give a folder or hub id as evaluate.{kind}"
    )


def _find(kind: Kind, name: str | None) -> Embedder | None:
    if name is not None and not _is_hub_id(name):
        name = str(Path(name).expanduser().absolute())  # an actor works in another folder
    folder = _folder(PUBLISHED[kind] if name is None else name)
    if name is None and (folder is None or not any((folder / file).is_file() for file in WEIGHTS)):
        return None  # nobody asked for it, and the cache holds nothing of it, or a part
    if folder is None:
        raise ConfigError(
            f"evaluate.{kind}={name}: no such folder, nor a hub id that the cache holds; run `hf download`"
        )
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    dimensions = config.get({"clip": "projection_dim", "dinov2": "hidden_size"}[kind])
    if config.get("model_type") != kind or dimensions is None:
        raise ConfigError(f"evaluate.{kind}={name or PUBLISHED[kind]}: {folder} holds no {kind} model (config.json)")
    weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise ConfigError(f"evaluate.{kind}={name or PUBLISHED[kind]}: {folder} holds none of {', '.join(WEIGHTS)}")
    return Embedder(kind, name or PUBLISHED[kind], store.sha256(str(weights)), int(dimensions))


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).is_dir()


def _folder(name: str) -> Path | None:
    if not _is_hub_id(name):
        folder = Path(name).expanduser().absolute()
        return folder if folder.is_dir() else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


class EmbeddingNetwork:
    """Maps pictures to the numbers of an embedder."""

    def __init__(self, embedder: Embedder, device: str | torch.device = "cpu") -> None:
        """Load it.

        Raises:
            ConfigError: it is not on this machine, or not the one that was asked for.
        """
        import transformers

        found = _find(embedder.kind, embedder.name)
        folder = _folder(embedder.name)
        if found is None or folder is None or found.sha256 != embedder.sha256:
            raise ConfigError(f"evaluate.{embedder.kind}={embedder.name} is another or missing on this machine")
        self.embedder, self.device = embedder, torch.device(device)
        kind: Any = {"clip": transformers.CLIPModel, "dinov2": transformers.Dinov2Model}[embedder.kind]
        network = kind.from_pretrained(folder, weights_only=True, local_files_only=True, dtype=torch.float32)
        self._network = network.eval().to(self.device)
        self._processor = transformers.AutoImageProcessor.from_pretrained(folder)
        if embedder.kind == "clip":
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def __call__(self, pictures: npt.NDArray[np.uint8], prompts: list[str] | None = None) -> npt.NDArray[np.float32]:
        """(B, H, W, 3) uint8 to (B, columns) float32; of CLIP of unit length, then the cosine to the prompt, or 0.

        Raises:
            ValueError: another shape or dtype.
        """
        pixels = self._processor(list(checked(pictures)), return_tensors="pt")["pixel_values"].to(self.device)
        if self.embedder.kind == "dinov2":
            return np.asarray(self._network(pixel_values=pixels).last_hidden_state[:, 0].float().cpu().numpy())
        images = _unit(self._network.get_image_features(pixel_values=pixels))
        cosines = torch.zeros(len(images), 1, device=self.device)
        if prompts is not None:
            tokens = self._tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self.device)
            texts = _unit(self._network.get_text_features(**tokens))
            cosines = (images * texts).sum(1, keepdim=True)
        return np.asarray(torch.cat([images, cosines], dim=1).cpu().numpy())


def _unit(output: Any) -> torch.Tensor:
    """Embeddings of length 1; transformers gives them alone or, since its fifth release, within an output."""
    embeddings: torch.Tensor = getattr(output, "pooler_output", output)
    return torch.nn.functional.normalize(embeddings.float(), dim=1)


def digest(embedders: tuple[Embedder, ...]) -> str:
    """End of the names of files with their features."""
    if not embedders:
        return ""
    return "-" + hashlib.sha256("".join(embedder.sha256 for embedder in embedders).encode()).hexdigest()[:16]
