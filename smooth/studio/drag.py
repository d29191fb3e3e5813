"""The tab that drags points of a real picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

from smooth.edit import drag as dragging
from smooth.edit.drag import DragSettings, Point
from smooth.edit.generate import image_size
from smooth.edit.media import Picture
from smooth.studio import parts, told
from smooth.studio.desk import Desk, name_of, picture_of, served
from smooth.studio.models import levels

MOST_PAIRS = 8
EXPLAINED = (
    "Upload a picture and say what it shows. Then click into it: first on what to move (red), then on where it should "
    "go (blue)."
)
HANDLE, TARGET = "#dc2626", "#2563eb"
RADIUS = 9  # pixels of the preview


@dataclass(frozen=True)
class Drag:
    """The tab."""

    desk: Desk

    def build(self, chosen: list[Any]) -> None:
        """Add the tab."""
        with parts.tab("Drag", EXPLAINED):
            with gr.Column(min_width=260):
                file = parts.field("Your picture", "drag")
                seen = gr.Image(
                    label="Click: what to move, then where to", interactive=False, buttons=[], visible=False,
                    format="png", elem_id="drag-seen",
                )  # fmt: skip
                clear = gr.Button("Clear the points", size="sm")
                prompt = gr.Textbox("red heart", label="What it shows", elem_id="drag-prompt")
                iterations = gr.Slider(
                    1, 200, 80, step=1, label="Iterations", info="How long to pull", elem_id="drag-iterations"
                )
                settings = parts.sampling("drag", guided=False)
                pressed = parts.buttons("Drag")
            with gr.Column(scale=2):
                result = parts.gallery("drag")
                said = gr.Markdown("", elem_id="drag-said")
            points = gr.State([], time_to_live=3600)
        for happens in (file.upload, file.clear, clear.click):
            happens(self.reset, file, [points, file, seen], **parts.SAID)
        seen.select(self.click, [file, points], [points, seen], **parts.SAID)
        parts.wire(
            self.desk, pressed, self.work, [*chosen, file, points, prompt, iterations, *settings], [result, said]
        )

    def click(self, upload: str | None, points: list[Point], event: gr.SelectData) -> tuple[list[Point], Any]:
        """Take a point; gives all of them, and the picture with them."""
        if len(points) == 2 * MOST_PAIRS:
            gr.Warning(f"There are {MOST_PAIRS} pairs of points already.")
            return points, gr.skip()
        x, y = event.index
        found = [*points, (float(x), float(y))]
        return found, _marked(picture_of(upload, parts.PREVIEW), found)

    def reset(self, upload: str | None) -> tuple[list[Point], Any, Any]:
        """Forget the points; gives none, and the updates of field and preview."""
        return [], *parts.previewed(upload)

    def work(
        self,
        model: str,
        strength: float,
        compare: bool,
        upload: str | None,
        points: list[Point],
        prompt: str,
        iterations: float,
        steps: float,
        request: gr.Request,
        bar: gr.Progress = parts.BAR,
    ) -> tuple[list[tuple[str, str]], str]:
        """Drag; gives the gallery, and what became of the points."""
        with self.desk.job(request, bar) as job:
            picture_of(upload, parts.PREVIEW)
            if not points or len(points) % 2:
                raise ValueError("a point has no partner; click into the picture: what to move, then where to")
            edited = self.desk.models.open(model)
            shown, lines = [], []
            with edited.lock:
                for label, level in levels(edited, strength, compare).items():
                    pipeline = edited.at(level)
                    size = image_size(pipeline)
                    scaled = [_scaled(point, size) for point in points]
                    handles, targets = scaled[::2], scaled[1::2]
                    dragged = dragging.drag(
                        pipeline, picture_of(upload, size), prompt, handles, targets,
                        settings=DragSettings(steps=int(steps), iterations=int(iterations)),
                        progress=job.telling(f"dragging, {label}"),
                    )  # fmt: skip
                    facts = {"smooth": {"handles": dragged.handles.tolist(), "losses": dragged.losses.tolist()}}
                    moves = [f"{a:g},{b:g}:{c:g},{d:g}" for (a, b), (c, d) in zip(handles, targets, strict=True)]
                    data = told.png(
                        "drag", edited, dragged.picture, picture=name_of(str(upload)), prompt=prompt, move=moves,
                        iterations=int(iterations), steps=int(steps), base=self.desk.models.base, strength=level,
                        found=facts,
                    )  # fmt: skip
                    shown.append((served(data, f"{label}-dragged.png"), label))
                    way = "arrived" if dragged.arrived else "not all arrived"
                    lines.append(f"{label}: {way} after {len(dragged.losses)} iterations")
            return shown, "; ".join(lines)


def _scaled(point: Point, size: int) -> Point:
    """A point of the preview in pixels of the model's picture, to a tenth."""
    x, y = (min(max(round((each + 0.5) * size / parts.PREVIEW - 0.5, 1), 0.0), size - 1.0) for each in point)
    return x, y


def _marked(picture: Picture, points: list[Point]) -> Picture:
    """The preview with its points, and an arrow's line for each pair."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for start, end in zip(points[::2], points[1::2], strict=False):
        draw.line([start, end], fill="white", width=7)
        draw.line([start, end], fill=TARGET, width=3)
    for index, (x, y) in enumerate(points):
        box = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
        draw.ellipse(box, fill=TARGET if index % 2 else HANDLE, outline="white", width=3)
    return np.asarray(image)
