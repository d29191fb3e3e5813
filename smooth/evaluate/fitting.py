"""Batches that a GPU's memory holds: a block that it has no room for is painted in parts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
Painted = TypeVar("Painted")


class Fitting:
    """Paints blocks whole; out of memory, by halves, and from then on never more at once than there was room for.

    Noises are drawn by index and a block is kept whole, so what is painted is the same.
    """

    def __init__(self, kind: str, knob: str) -> None:
        """``kind`` is what these blocks hold, ``knob`` the config's key for their size."""
        self._kind = kind
        self._knob = knob
        self._most: int | None = None

    def __call__(self, paint: Callable[[range], Painted], indices: range) -> list[Painted]:
        """What ``paint`` makes of the parts of ``indices``, in order.

        Raises:
            torch.OutOfMemoryError: not even one fits.
        """
        found: list[Painted] = []
        halved = False
        start = indices.start
        while start < indices.stop:
            part = range(start, min(start + (self._most or len(indices)), indices.stop))
            try:
                found.append(paint(part))
                start = part.stop
                continue
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
            # Here, as the error held what was in memory when it was raised.
            torch.cuda.empty_cache()
            self._most, halved = len(part) // 2, True
        if halved:
            logger.warning(
                "no memory for %d %s at once: %d at a time from here on; give the next evaluation a lower %s",
                len(indices), self._kind, self._most, self._knob,
            )  # fmt: skip
        return found
