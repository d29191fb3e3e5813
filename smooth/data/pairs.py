"""Pairs of OpenMoji drawings that differ in one attribute, skin tone or colour: an edit whose right result is known."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from smooth.data.openmoji import Drawing, Style, drawings, render

SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
LEAST_TONES_APART = 2  # neighbouring tones differ by less than the small base's colours do
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink")
COLOURED = re.compile(
    rf"(?P<before>|large |small |.* skin tone )(?P<value>{'|'.join(COLOURS)})"
    r"(?P<after> heart| circle| square| book| apple| diamond| hair)"
)
TONED = re.compile(rf"(?P<before>.+ )(?P<value>{'|'.join(SKIN_TONES)})(?P<after> skin tone.*)")
COLOUR_EVERY = 5  # one colour among so many pairs
STYLE = 1000  # of both pictures: neither pretraining nor the built-in web has that one

Attribute = Literal["skin tone", "colour"]


@dataclass(frozen=True)
class Pair:
    """Two drawings of the same thing."""

    attribute: Attribute
    source: Drawing
    target: Drawing

    def render(self, size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Both as (size, size, 3) uint8, at the same place and on the same background."""
        style = Style.draw(self.source.key, STYLE)
        return render(self.source, size, style), render(self.target, size, style)


@cache
def pairs() -> tuple[Pair, ...]:
    """The pairs, always in the same order, in which any stretch has one colour among four skin tones.

    Skin tones have a source drawing that is held out from pretraining, once each, and a target that is two or more
    tones away. Colours are too few for that: a source is any drawing, in a style that pretraining has not seen.
    """
    tones = [pair for pair in _pairs("skin tone", TONED) if pair.source.held_out and _apart(pair)]
    colours = _pairs("colour", COLOURED)
    found: list[Pair] = []
    for toned, coloured in zip(_blocks(_once(tones), COLOUR_EVERY - 1), _once(colours), strict=False):
        found += [*toned, coloured]
    return tuple(found)


def _pairs(attribute: Attribute, pattern: re.Pattern[str]) -> list[Pair]:
    """All ordered pairs whose captions differ in what ``value`` matches alone, in an order drawn by hash."""
    families: dict[tuple[str, str], list[Drawing]] = {}
    for drawing in drawings():
        match = pattern.fullmatch(drawing.caption)
        if match is not None and "skin tone" not in (match["before"] + match["after"]).replace(" skin tone", "", 1):
            families.setdefault((match["before"], match["after"]), []).append(drawing)
    found = [
        Pair(attribute, source, target)
        for family in families.values()
        for source in family
        for target in family
        if source != target
    ]
    return sorted(found, key=lambda pair: hashlib.sha256(f"{pair.source.key}/{pair.target.key}".encode()).digest())


def _apart(pair: Pair) -> bool:
    source, target = (SKIN_TONES.index(TONED.sub(r"\g<value>", each.caption)) for each in (pair.source, pair.target))
    return abs(source - target) >= LEAST_TONES_APART


def _once(found: list[Pair]) -> list[Pair]:
    """The first pair of each source."""
    firsts: dict[str, Pair] = {}
    for pair in found:
        firsts.setdefault(pair.source.key, pair)
    return list(firsts.values())


def _blocks(found: list[Pair], size: int) -> list[list[Pair]]:
    return [found[start : start + size] for start in range(0, len(found) - size + 1, size)]
