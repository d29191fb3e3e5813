"""The page: the model above, a tab for each task below."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.themes.utils.fonts import Font

from smooth.studio import parts
from smooth.studio.desk import Desk
from smooth.studio.drag import Drag
from smooth.studio.edit import Edit
from smooth.studio.generate import Generate
from smooth.studio.interpolate import Interpolate
from smooth.studio.invert import Invert
from smooth.studio.models import label_of

EXPLAINED = """# Smooth studio
A smooth model changes its picture by small, steady steps when its noise does. **Base** is the model as it was,
**smooth** is the same one with what was trained on it.
"""
CSS = """
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto; }
.pictures .grid-wrap { max-height: none; }
.pictures .thumbnail-lg img, .frame img, .strip img { width: 100%; height: 100%; object-fit: contain; }
"""
MOST_WAITING = 32


def build(desk: Desk) -> Any:
    """The page as gradio's Blocks, for :mod:`smooth.studio.server`."""
    names = desk.models.names
    with gr.Blocks(title="Smooth studio", analytics_enabled=False, fill_width=True, delete_cache=(600, 86400)) as page:
        gr.Markdown(EXPLAINED)
        with gr.Row(equal_height=True):
            model = gr.Dropdown(
                [(label_of(name), name) for name in names], value=names[0], label="Model", info="Given, or registered",
                scale=3, min_width=240, elem_id="model",
            )  # fmt: skip
            strength = gr.Slider(
                0, 1.5, 1, step=0.05, label="Strength", info="0 is the base, 1 as trained", scale=2, min_width=200,
                elem_id="strength",
            )  # fmt: skip
            compare = gr.Checkbox(
                True, label="Compare with the base", info="Twice the work", scale=1, min_width=160, elem_id="compare"
            )
        chosen = [model, strength, compare]
        with gr.Tabs():
            for tab in (Generate, Interpolate, Invert, Edit, Drag):
                tab(desk).build(chosen)

        def refresh() -> Any:
            choices, note = desk.models.listed()
            return gr.Dropdown(choices=choices, info=note or "Given at the start; the registry has none yet")

        page.load(refresh, None, model, **parts.AT_ONCE)
        page.unload(desk.cancel)
    page.queue(max_size=MOST_WAITING, api_open=False)
    return page


def theme() -> Any:
    """Fonts of the reader's own machine: nothing is fetched."""
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=[Font("system-ui"), Font("sans-serif")],
        font_mono=[Font("ui-monospace"), Font("monospace")],
    )
