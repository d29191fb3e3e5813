"""Where a run config comes from: a preset's YAML and ``dotted.key=value`` overrides, still unchecked."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


class ConfigError(ValueError):
    """The run config can't be used; the message names the key and the way out."""


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = files("smooth") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_preset(preset: str) -> dict[str, Any]:
    """Values of a preset by name, or of a YAML file by path.

    Raises:
        ConfigError: no such preset (its nearest neighbour is named) or file, or not a YAML mapping.
    """
    if preset.endswith((".yaml", ".yml")):
        path = Path(preset)
        if not path.is_file():
            raise ConfigError(f"preset {preset}: no such file")
        text = path.read_text()
    elif preset in preset_names():
        text = (files("smooth") / "presets" / f"{preset}.yaml").read_text()
    else:
        raise ConfigError(f"unknown preset {preset!r}{nearest(preset, preset_names())}; or give the path of a .yaml")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"preset {preset} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"preset {preset} must be a mapping of sections")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value`` in place; the value is YAML.

    Raises:
        ConfigError: no equals sign, or no YAML after it.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r} must read dotted.key=value, for example train.steps=100")
    *parents, leaf = key.strip().split(".")
    node = values
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML ({error})") from None


def nearest(word: str, known: Sequence[str]) -> str:
    """End of an error message that names the closest known word."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"; nearest is {close[0]}" if close else ""
