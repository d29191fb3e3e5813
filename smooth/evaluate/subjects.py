"""The models that are measured, by the names that people have for one: folder, file, hub id, registered version."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from smooth import store
from smooth.config import REGISTERED, ConfigError, ModelConfig, model_identity
from smooth.models import UNET, WEIGHTS_NAME, trained_files

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    base: str
    """pipeline, as :func:`load_pipeline` takes it"""
    revision: str | None = None
    trained: str | None = None
    """folder of what was trained beside it, a LoRA or a whole UNet"""

    @property
    def identity(self) -> str:
        """Changes with the base and with any byte of what was trained: hex digits, or a hub id with its revision."""
        base = model_identity(self.base, self.revision)
        if self.trained is None:
            return base
        files = [f"{name} {store.sha256(store.join(self.trained, name))}" for name in trained_files(self.trained)]
        return hashlib.sha256("\n".join([base, *files]).encode()).hexdigest()[:16]


def base_of(subject: Subject) -> Subject:
    """The pipeline that a model was trained from.

    Raises:
        ConfigError: the model is a whole pipeline, which doesn't say.
    """
    if subject.trained is None:
        raise ConfigError(
            f"{subject.base} is a whole pipeline and names no base: say what to compare with by --against"
        )
    return replace(subject, trained=None)


Fetch = Callable[[str, str], tuple[str, str | None, str]]


def _registered(uri: str, root: str) -> tuple[str, str | None, str]:
    """:func:`smooth.registry.fetch`; MLflow takes seconds to import, and only registered names need it."""
    from smooth import registry

    return registry.fetch(uri, root)


def find(name: str, base: ModelConfig, scratch: str, fetch: Fetch = _registered) -> Subject:
    """The model that a person means.

    Args:
        name: a diffusers pipeline (folder or hub id, ``id@revision`` too), a LoRA (file, or folder with
            ``pytorch_lora_weights.safetensors``), a folder with a trained ``unet``, or ``models:/NAME@ALIAS``.
        base: the pipeline that a LoRA or a UNet alone belongs to.
        scratch: folder, on any fsspec path that all actors reach, for what has to be copied.
        fetch: takes a ``models:/`` name and a folder to copy what was trained below; returns base, revision, the copy.

    Raises:
        ConfigError: nothing there, or only a pickle.
    """
    scratch = _absolute(scratch)
    if name.startswith(REGISTERED):
        return Subject(*fetch(name, scratch))
    if name.endswith(PICKLES):
        raise ConfigError(f"{name} is a pickle, which can run any code when it is read; give the model as safetensors")
    if name.endswith(".safetensors"):
        return Subject(base.base, base.revision, _lora_folder(name, scratch))
    if name.startswith("builtin:"):
        return Subject(name)
    if _holds(name, "model_index.json"):
        return Subject(_absolute(name))
    if _holds(name, WEIGHTS_NAME) or _holds(name, UNET):
        return Subject(base.base, base.revision, _absolute(name))
    if "://" in name or Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
        raise ConfigError(
            f"{name} is no model: neither a pipeline (model_index.json) nor trained weights ({WEIGHTS_NAME}, or the "
            f"folder {UNET}) lie there"
        )
    identifier, _, revision = name.partition("@")
    return Subject(identifier, revision or None)


def _absolute(folder: str) -> str:
    """The same folder to an actor, which works in another one."""
    return folder if "://" in folder else str(Path(folder).expanduser().absolute())


def _holds(folder: str, name: str) -> bool:
    return store.exists(store.join(_absolute(folder), name))


def _lora_folder(path: str, scratch: str) -> str:
    """A folder with the file under the name that diffusers looks for."""
    if not store.exists(path):
        raise ConfigError(f"{path}: no such file; give a LoRA's safetensors, or a folder that holds {WEIGHTS_NAME}")
    folder = store.join(scratch, store.sha256(path)[:16])
    if not store.exists(store.join(folder, WEIGHTS_NAME)):
        store.write_bytes(store.join(folder, WEIGHTS_NAME), store.read_bytes(path))
    return folder
