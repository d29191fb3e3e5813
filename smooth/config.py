"""The typed run config: everything a run depends on, checked before anything expensive starts.

A preset is a YAML file of :class:`RunConfig`; overrides are ``dotted.key=value`` strings. Each
stage has a fingerprint of all its inputs (its own section, the model, everything upstream), and
its artifact lies in a folder named by it, so changed inputs never meet a stale artifact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from fsspec.utils import tokenize
from pydantic import ConfigDict, Field, ValidationError, model_validator

from smooth import store
from smooth.overrides import ConfigError as ConfigError
from smooth.overrides import apply_override, nearest, read_preset
from smooth.sections import DemoWebConfig as DemoWebConfig
from smooth.sections import EvaluateConfig as EvaluateConfig
from smooth.sections import IngestConfig as IngestConfig
from smooth.sections import LatentsConfig as LatentsConfig
from smooth.sections import LoraConfig as LoraConfig
from smooth.sections import ModelConfig as ModelConfig
from smooth.sections import RegisterConfig as RegisterConfig
from smooth.sections import Section as Section
from smooth.sections import Size as Size
from smooth.sections import StorageConfig as StorageConfig
from smooth.sections import TrainConfig as TrainConfig
from smooth.sections import VariationConfig as VariationConfig

Stage = Literal["ingest", "latents", "train", "evaluate", "register"]
STAGES: tuple[Stage, ...] = get_args(Stage)

REGISTERED = "models:/"  # begins the name of a registered model

# Raise when a stage's output for the same config changes meaning: old artifacts are then left alone.
STAGE_VERSIONS: dict[Stage, int] = {"ingest": 2, "latents": 3, "train": 2, "evaluate": 5, "register": 2}


class RunConfig(Section):
    """A whole run. Load one with :meth:`load`; never build it from unchecked input."""

    preset: str = "tiny"
    seed: int = Field(42, ge=0)
    experiment: str = Field("smooth", json_schema_extra={"runtime": True}, description="MLflow experiment")
    storage: StorageConfig = StorageConfig()
    model: ModelConfig = ModelConfig()
    ingest: IngestConfig
    latents: LatentsConfig = LatentsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: RegisterConfig = Field(RegisterConfig(), alias="register")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _buckets_have_their_pictures(self) -> Self:
        if self.ingest.resize_mode == "center_crop" and any(height != width for height, width in self.latents.buckets):
            raise ValueError(
                "latents.buckets: ingest.resize_mode=center_crop leaves nothing but squares; set "
                "ingest.resize_mode=keep_ratio"
            )
        return self

    @model_validator(mode="after")
    def _samples_are_appended(self) -> Self:
        if self.train.log_samples and "://" in self.storage.root:
            raise ValueError(
                "train.log_samples appends to files, which an object store can't; set it to false, or storage.root "
                "to a folder"
            )
        return self

    @classmethod
    def load(cls, preset: str = "tiny", overrides: Sequence[str] = ()) -> RunConfig:
        """Read a preset (a name under ``smooth/presets/`` or a YAML path) and apply ``key=value`` overrides.

        Raises:
            ConfigError: unknown preset or key (with its nearest neighbour), bad value, contradiction.
        """
        values = read_preset(preset)
        for override in overrides:
            apply_override(values, override)
        return cls.parse(values)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> RunConfig:
        """Check plain values (of a preset, a saved config or a request)."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None

    def to_yaml(self) -> str:
        """The resolved config as YAML that :meth:`load` accepts."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def fingerprint(self, stage: Stage) -> str:
        """16 hex digits over all that the stage's output depends on, upstream included."""
        return _digest(self._inputs(stage))

    def stage_dir(self, stage: Stage) -> str:
        """Folder of the stage's artifact, named by its fingerprint."""
        root = self.storage.root
        if "://" not in root:
            root = str(Path(root).absolute())
        return store.join(root, stage, self.fingerprint(stage))

    def _inputs(self, stage: Stage) -> dict[str, Any]:
        inputs: dict[str, Any] = {"stage": stage, "version": STAGE_VERSIONS[stage]}
        index = STAGES.index(stage)
        if index:
            inputs["upstream"] = self.fingerprint(STAGES[index - 1])
        section: Section = getattr(self, "register_" if stage == "register" else stage)
        inputs["config"] = section.identity()
        if stage == "ingest":
            for key in ("url_list", "blocked_domains", "blocked_hashes"):
                if (path := getattr(self.ingest, key)) is not None:
                    inputs[key] = file_identity(f"ingest.{key}", path)
        if stage == "evaluate":
            for key in ("prompts_file", "picture_prompts_file", "reference", "inception_weights"):
                if (path := getattr(self.evaluate, key)) is not None:
                    inputs[key] = file_identity(f"evaluate.{key}", path)
            for key in ("clip", "dinov2"):
                if (path := getattr(self.evaluate, key)) is not None and Path(path).expanduser().is_dir():
                    inputs[key] = file_identity(f"evaluate.{key}", str(Path(path).expanduser()))
        if stage in ("latents", "train"):
            inputs["model"] = model_identity(self.model.base, self.model.revision)
        if stage in ("train", "evaluate"):
            inputs["seed"] = self.seed
        return inputs


def resolve_model(base: str) -> str:
    """Turn ``builtin:NAME`` into the folder of the committed model; leave other names alone.

    Raises:
        ConfigError: no such built-in model, or a path that does not exist.
    """
    if base.startswith("builtin:"):
        folder = Path(str(files("smooth"))) / "models" / base.removeprefix("builtin:")
        if not (folder / "model_index.json").is_file():
            known = sorted(path.parent.name for path in folder.parent.glob("*/model_index.json"))
            raise ConfigError(f"model.base={base}: no such built-in model; there are: {', '.join(known) or 'none'}")
        return str(folder)
    if base.startswith(("/", "./", "../", "~")):
        folder = Path(base).expanduser()
        if not (folder / "model_index.json").is_file():
            raise ConfigError(f"model.base={base}: no diffusers pipeline there (no model_index.json)")
        return str(folder)
    return base


def model_identity(base: str, revision: str | None) -> str:
    """What identifies the base model: the content of a local folder, or the name and revision of a remote one."""
    resolved = resolve_model(base)
    folder = Path(resolved)
    if not folder.is_dir():
        return f"{base}@{revision or 'main'}"
    weights = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json", ".txt"))
    digests = {}
    for path in weights:
        digests[str(path.relative_to(folder))] = local_sha256(path)
    return _digest(digests)


def local_sha256(path: Path) -> str:
    """Hex SHA-256 of a file of this machine, read once for each state of it."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    """Fingerprints are asked for often, and weights may be gigabytes: one read per state of a file."""
    return store.sha256(str(path))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_identity(key: str, path: str) -> str:
    """Changes with the content of a file, or of any file in a folder.

    A folder is listed once, whatever the number of its files: they are told by what the listing says of each.
    """
    fs, inner = store.filesystem(path)
    if not fs.exists(inner):
        raise ConfigError(f"{key}={path}: no such file; give the path of one on any fsspec filesystem")
    if fs.isfile(inner):
        return _digest([str(fs.checksum(inner))])
    listed = fs.find(inner, detail=True)
    return _digest([tokenize(listed[file]) for file in sorted(listed)])


def _explain(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "config"
    if item["type"] != "extra_forbidden":
        given = "" if isinstance(item["input"], dict) else f" (given: {item['input']!r})"
        return f"{key}: {item['msg'].removeprefix('Value error, ')}{given}"
    return f"unknown key {key}{nearest(key, known_keys())}"


def known_keys(section: type[Section] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the config, sections included."""
    keys: list[str] = []
    for name, info in section.model_fields.items():
        key = f"{prefix}{info.alias or name}"
        keys.append(key)
        candidates = (info.annotation, *get_args(info.annotation))
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, Section):
                keys += known_keys(candidate, f"{key}.")
    return keys
