"""A model to make and edit pictures with, at any strength of what was trained."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError

from smooth.config import REGISTERED, ModelConfig
from smooth.evaluate import subjects
from smooth.evaluate.subjects import Subject
from smooth.models import WEIGHTS_NAME, trained, trained_files
from smooth.models.pipeline import ModelError, load_pipeline


@dataclass(frozen=True)
class EditModel:
    """A base pipeline, and what was trained on it: a LoRA, a whole UNet, or nothing."""

    name: str
    """as it was asked for; of a registry's alias the version that it meant then"""
    subject: Subject
    identity: str
    """changes with the base and with any byte of what was trained"""
    adapters: tuple[str, ...]
    """of a LoRA, as diffusers names them"""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    """to be held from :meth:`at` to the end of the work with the pipeline, where threads share the model"""
    _pipeline: Any = field(default=None, repr=False, compare=False)
    _switch: Callable[[bool], None] | None = field(default=None, repr=False, compare=False)

    @property
    def has_base(self) -> bool:
        """Whether strength 0 is another model than strength 1."""
        return self._switch is not None

    def at(self, strength: float = 1.0) -> Any:
        """The ``StableDiffusionPipeline`` at a strength: 0 is the base, 1 what was trained; always the same object.

        A LoRA is scaled by any strength, beyond 1 and below 0, too.

        Raises:
            ValueError: another strength than 0 and 1 of a model that is not a LoRA, or no number.
        """
        self._check(strength)
        if self._switch is not None:
            self._switch(strength != 0)
            if self.adapters and strength != 0:
                self._pipeline.set_adapters(list(self.adapters), [strength] * len(self.adapters))
        return self._pipeline

    def identity_at(self, strength: float) -> str:
        """What a cache is keyed by: the identity with the strength; that of the base at strength 0."""
        self._check(strength)
        if self.has_base and strength == 0:
            return subjects.base_of(self.subject).identity
        return f"{self.identity}*{strength:g}" if self.adapters else self.identity

    def _check(self, strength: float) -> None:
        if not math.isfinite(strength):
            raise ValueError(f"strength={strength}: give a number; 0 is the base, 1 what was trained")
        if not self.adapters and strength not in (0, 1):
            what = "a UNet fine-tuned as a whole" if self.has_base else "a pipeline with no LoRA beside it"
            raise ValueError(f"strength={strength:g}: {self.name} is {what}, which knows 0 and 1 alone")


def open_model(
    name: str,
    base: ModelConfig | None = None,
    *,
    scratch: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> EditModel:
    """Load the model that a person means.

    Args:
        name: a diffusers pipeline (folder or hub id, ``id@revision`` too), a LoRA (safetensors file, or folder with
            ``pytorch_lora_weights.safetensors``), a folder with a trained ``unet``, or ``models:/NAME@ALIAS``.
        base: the pipeline that a LoRA or a UNet alone belongs to; the built-in one if None.
        scratch: folder, on any fsspec path, for what has to be copied.
        device: the GPU, where there is one, else the CPU, if None.
        dtype: of all weights. Null-text inversion wants float32.

    Raises:
        ConfigError: nothing there, or only a pickle.
        ArtifactError: no such registered version.
        ModelError: it can't be read, or what was trained does not fit the base.
    """
    name = meant(name)
    subject = subjects.find(name, base or ModelConfig(), scratch)
    found = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = load_pipeline(subject.base, revision=subject.revision, device=found, dtype=dtype)
    if subject.trained is None:
        return EditModel(name, subject, subject.identity, (), _pipeline=pipeline)
    is_lora = trained_files(subject.trained) == [WEIGHTS_NAME]
    try:
        switch = trained.attach(pipeline, subject.trained)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{name} can't be read: {error}; its file is broken or cut short: get it again") from error
    except (ValueError, RuntimeError) as error:  # tensors of other names, and those of other shapes
        raise ModelError(
            f"{name} does not fit its base {subject.base}: {error}; give the pipeline it is for"
        ) from error
    adapters = tuple(dict.fromkeys(each for names in pipeline.get_list_adapters().values() for each in names))
    if is_lora and not adapters:
        raise ModelError(f"{name} holds no layer of its base {subject.base}; give the pipeline it is for")
    if is_lora:
        pipeline.unet.requires_grad_(False)
    return EditModel(name, subject, subject.identity, adapters, _pipeline=pipeline, _switch=switch)


def meant(name: str) -> str:
    """The name that means the same weights for ever: of ``models:/NAME@ALIAS`` the version it points to now.

    Raises:
        ArtifactError: no such alias, or the registry doesn't answer.
    """
    if not name.startswith(REGISTERED):
        return name
    from smooth import registry

    return registry.resolve(name)
