"""Two models by one painter: a base beside what was trained on it, on one pipeline or on two."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smooth.evaluate.subjects import Subject
from smooth.evaluate.worker import Block, Painter
from tests.evaluated import write_adapter
from tests.protocols import protocol


def test_which_of_the_two_is_trained_changes_no_picture(tiny_base: str, tmp_path: Path) -> None:
    """A LoRA on a switch, and the same two models the other way round, each on a pipeline of its own."""
    write_adapter(tiny_base, str(tmp_path))
    plain, trained = Subject(tiny_base), Subject(tiny_base, None, str(tmp_path))
    switched = Painter({"base": plain, "smooth": trained}, protocol(), cuda=False)
    apart = Painter({"base": trained, "smooth": plain}, protocol(), cuda=False)
    block = Block("frames", 0, 2)
    smooth, base = switched.paint("smooth", block), switched.paint("base", block)
    assert np.array_equal(apart.paint("base", block), smooth)
    assert np.array_equal(apart.paint("smooth", block), base)
    assert not np.array_equal(base, smooth)
