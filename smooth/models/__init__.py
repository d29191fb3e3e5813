"""Models: loading pipelines, adapters, and the committed small model."""

from __future__ import annotations

import posixpath

from smooth import store

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # of an adapter, as diffusers looks for it
UNET = "unet"  # folder of a fine-tuned UNet, as in a diffusers pipeline


def trained_files(folder: str) -> list[str]:
    """Names of what a training left in ``folder``: an adapter's one file, or those of a whole UNet.

    Raises:
        ArtifactError: there are no trained weights.
    """
    fs, inner = store.filesystem(folder)
    if fs.exists(f"{inner}/{WEIGHTS_NAME}"):
        return [WEIGHTS_NAME]
    if not fs.exists(f"{inner}/{UNET}"):
        raise store.ArtifactError(f"{folder} holds neither {WEIGHTS_NAME} nor the folder {UNET}; run the train stage")
    return sorted(f"{UNET}/{posixpath.basename(path)}" for path in fs.ls(f"{inner}/{UNET}", detail=False))
