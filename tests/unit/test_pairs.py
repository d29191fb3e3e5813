"""Pairs of drawings that differ in one attribute, and what is measured on their edits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from smooth.data.pairs import COLOURS, SKIN_TONES, pairs
from smooth.evaluate.editing import Edits, matched_difference, measure, paired_difference, regions

RNG = np.random.default_rng(0)


def test_captions_differ_in_the_attribute_alone() -> None:
    values = {"skin tone": SKIN_TONES, "colour": COLOURS}
    for pair in pairs():
        source, target = (drawing.caption.split() for drawing in (pair.source, pair.target))
        assert len(source) == len(target)
        changed = [words for words in zip(source, target, strict=True) if words[0] != words[1]]
        assert len(changed) == 1
        assert set(changed[0]) <= set(values[pair.attribute])


def test_any_stretch_has_one_colour_among_four_skin_tones() -> None:
    found = pairs()
    assert len(found) >= 70
    for start in (0, 20, 25):
        assert Counter(pair.attribute for pair in found[start : start + 20]) == {"skin tone": 16, "colour": 4}
    assert all(pair.source.held_out for pair in found if pair.attribute == "skin tone")
    keys = [pair.source.key for pair in found]
    assert len(set(keys)) == len(keys)
    assert found == pairs()


def test_a_pair_differs_in_a_part_of_the_picture() -> None:
    for pair in pairs()[:70]:
        source, target = (picture / 255.0 for picture in pair.render(64))
        inside, beyond = regions(source, target, 4)
        assert inside.sum() >= 10, pair
        assert beyond.mean() > 0.25, pair
        assert (source[beyond] == target[beyond]).mean() > 0.99


def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures of 32 x 32 with a square of 8 that goes from 100 to 200."""
    sources = np.full((count, 32, 32, 3), 50, np.uint8)
    sources[:, 8:16, 8:16] = 100
    targets = sources.copy()
    targets[:, 8:16, 8:16] = 200
    return sources, targets


def test_the_measures_are_those_of_hand_made_edits() -> None:
    sources, targets = drawn(2)
    half = sources.copy()
    half[:, 8:16, 8:16] = 150
    spoilt = targets.copy()
    spoilt[:, 24:] = 101  # a quarter of the picture is 51 off
    beside = sources.copy()
    beside[:, 4:20, 4:20] += 30  # the margin of 4 and the square itself
    found = measure(sources, targets, np.stack([sources, half, targets, spoilt, beside]), margin=4)
    outside = 32 * 32 - 16 * 16
    expected = [0, 0, 0, 51 / 255 * (8 * 32 / outside) ** 0.5, 0]
    assert found.outside[:, 0] == pytest.approx(expected, abs=1e-9)
    assert found.strength[:, 0] == pytest.approx([0, 0.5, 1, 1, 0.3])
    assert found.remaining[:, 1] == pytest.approx([1, 0.5, 0, 0, 0.7])


def test_an_edit_across_the_way_has_no_strength_but_is_no_nearer() -> None:
    sources, targets = drawn(1)
    across = sources.copy()
    across[:, 8:12, 8:16] -= 100
    across[:, 12:16, 8:16] += 100
    found = measure(sources, targets, across[None])
    assert found.strength[0, 0] == pytest.approx(0)
    assert found.remaining[0, 0] > 1.3


def curves(outside_at: float, strength_lift: float, count: int = 40) -> Edits:
    """Outside distance of ``outside_at`` times strength, each pair with its own lift."""
    each = RNG.normal(0, 0.02, count)
    strength = np.array([[0.2], [0.5], [0.8]]) + strength_lift + each
    return Edits(outside_at * strength, strength, 1 - strength)


def test_models_are_compared_at_the_same_strength() -> None:
    """The second edits less and so keeps more, but on the same curve: at the same strength neither is better."""
    base, timid = curves(0.1, 0.1), curves(0.1, 0.0)
    assert all(difference.high < 0 for difference in paired_difference(timid.outside, base.outside))
    matched = matched_difference(timid, base)
    assert matched is not None
    assert matched.value == pytest.approx(0, abs=1e-9)
    better = matched_difference(curves(0.08, 0.0), base)
    assert better is not None
    assert better.high < 0
    assert better.value == pytest.approx(-0.02 * 0.6, abs=0.002)  # over the strengths from 0.3 to 0.8
    assert matched_difference(curves(0.1, 2.0), base) is None


def test_what_can_not_be_measured_is_refused() -> None:
    sources, targets = drawn(1)
    with pytest.raises(ValueError, match="differ nowhere"):
        measure(sources, sources, sources[None])
    with pytest.raises(ValueError, match="differ everywhere"):
        measure(sources, 255 - sources, sources[None])
    with pytest.raises(ValueError, match=r"give \(R, B, H, W, 3\)"):
        measure(sources, targets, sources)
