"""A short protocol that needs no data: what the tests of sampling and of metrics are about is given as changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smooth.evaluate.protocol import Protocol

_SHORT = Protocol(
    prompts=("red heart", "a cat", "a hat"),
    picture_prompts=("a dog",),
    frames=3,
    strips=1,
    seed=7,
    image_size=64,
    steps=2,
    guidance=3.0,
    base="tiny",
    data="none",
)


def protocol(**changes: Any) -> Protocol:
    """The short protocol with changes."""
    return replace(_SHORT, **changes)
