from __future__ import annotations

import numpy as np

from smooth.data import openmoji


def test_captions_and_keys_are_unique_and_ordered():
    drawings = openmoji.drawings()
    keys = [drawing.key for drawing in drawings]
    assert len(drawings) > 3900
    assert keys == sorted(set(keys))
    assert len({drawing.caption for drawing in drawings}) == len(drawings)


def test_held_out_drawings_are_about_five_percent():
    drawings = openmoji.drawings()
    assert 0.03 < sum(drawing.held_out for drawing in drawings) / len(drawings) < 0.07


def test_a_picture_is_a_function_of_key_and_index():
    drawing = openmoji.drawings()[1000]
    first = openmoji.render(drawing, 64, openmoji.Style.draw(drawing.key, 0))
    again = openmoji.render(drawing, 64, openmoji.Style.draw(drawing.key, 0))
    other = openmoji.render(drawing, 64, openmoji.Style.draw(drawing.key, 1))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_drawing_shows_something_on_its_background():
    for drawing in openmoji.drawings()[::200]:
        style = openmoji.Style.draw(drawing.key, 0)
        pixels = openmoji.render(drawing, 64, style)
        assert (pixels != np.array(style.background)).any(axis=2).mean() > 0.02, drawing


def test_short_caption_drops_the_skin_tone():
    toned = next(d for d in openmoji.drawings() if "medium-dark skin tone" in d.caption)
    assert "skin tone" not in toned.short_caption
