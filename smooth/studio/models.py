"""The models that the page offers, each loaded once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smooth.config import REGISTERED
from smooth.edit import options

if TYPE_CHECKING:
    from smooth.edit.model import EditModel

MOST_LOADED = 3
MOST_LISTED = 50


class Models:
    """What was given at the start, and what the registry has; a page can't name anything else."""

    def __init__(self, names: Sequence[str], base: str) -> None:
        """Offer ``names``; a LoRA among them belongs to ``base``."""
        self.names = tuple(dict.fromkeys(names))
        self.base = base
        self._loaded: OrderedDict[str, EditModel] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, name: str | None) -> EditModel:
        """The model of a name, loaded if it isn't; the one that was used longest ago makes room.

        An alias of the registry is followed: it names the version that it points to now.

        Raises:
            ValueError: not offered, gone from the registry, or not to be read.
        """
        from smooth.edit.model import meant

        if not name or (name not in self.names and not name.startswith(REGISTERED)):
            raise ValueError(f"there is no model {name or 'chosen'}; choose one of the list")
        name = meant(name)
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = options.open_quietly(name, self.base)
            self._loaded.move_to_end(name)
            while len(self._loaded) > MOST_LOADED:
                self._loaded.popitem(last=False)
            return self._loaded[name]

    def listed(self) -> tuple[list[tuple[str, str]], str]:
        """Choices as (label, name), and what there is to say of the registry.

        A version of the registry is chosen by its number, which names the same weights for ever; the aliases that point
        to it are told beside it.
        """
        given = [(label_of(name), name) for name in self.names]
        try:
            from smooth import registry

            found = registry.versions(MOST_LISTED)
        except ModuleNotFoundError:
            return given, "The registry needs the package mlflow, which is not installed."
        except ValueError as error:
            return given, f"No registry: {error}"
        registered = [
            (f"{uri.removeprefix(REGISTERED).replace('/', ' version ')}{_told(aliases)}", uri) for uri, aliases in found
        ]
        return given + registered, f"Registered versions: {len(registered)}" if registered else ""


def label_of(name: str) -> str:
    """What a person reads for a model that was given at the start."""
    return "built-in base, with nothing trained on it" if name == "builtin:tiny" else name


def levels(edited: EditModel, strength: float, compare: bool) -> dict[str, float]:
    """Strengths to work with, by their labels; a whole pipeline has but one."""
    return options.levels(edited, float(strength), compare) if edited.has_base else {"base": 1.0}


def _told(aliases: Sequence[str]) -> str:
    return f" ({', '.join(aliases)})" if aliases else ""
