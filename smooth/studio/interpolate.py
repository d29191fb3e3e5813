"""The tab that goes from one picture to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from smooth.edit import interpolate as between
from smooth.edit import media
from smooth.edit.generate import image_size
from smooth.edit.interpolate import Frames, Way
from smooth.edit.invert import invert
from smooth.edit.model import EditModel
from smooth.studio import parts, told
from smooth.studio.desk import Desk, Job, name_of, picture_of, served, whole
from smooth.studio.models import levels

MOST_FRAMES = 33
COLORS = {"base": "#94a3b8", "smooth": "#0d9488"}
TOLD_COLORS = "grey: base, green: smooth"
EXPLAINED = (
    "Go from one picture to another and look at every step between. A smooth model changes by the same amount at each "
    "step: its curve is flat. To go between two pictures of yours, upload both and say what each shows."
)


@dataclass(frozen=True)
class Interpolate:
    """The tab."""

    desk: Desk

    def build(self, chosen: list[Any]) -> None:
        """Add the tab."""
        with parts.tab("Interpolate", EXPLAINED):
            with gr.Column(min_width=260):
                first = gr.Textbox("red heart", label="From", elem_id="interpolate-from")
                last = gr.Textbox("grinning face", label="To", elem_id="interpolate-to")
                with gr.Row():
                    start = gr.Number(1, label="Seed, from", precision=0, minimum=0, min_width=100)
                    end = gr.Number(2, label="Seed, to", precision=0, minimum=0, min_width=100)
                count = gr.Slider(3, MOST_FRAMES, 11, step=1, label="Frames", elem_id="interpolate-frames")
                equal = gr.Checkbox(False, label="Equal steps", info="Re-time the frames; up to five times as long")
                with gr.Accordion("Between two pictures of yours", open=False), gr.Row():
                    uploads = [parts.upload(label, f"interpolate-{label.lower()}") for label in ("First", "Last")]
                settings = parts.sampling("interpolate", null_text=True)
                pressed = parts.buttons("Interpolate")
            with gr.Column(scale=2):
                said = gr.Markdown("Press *Interpolate*, then move the slider.", elem_id="interpolate-said")
                slider = gr.Slider(1, 11, 1, step=1, label="Frame", interactive=False, elem_id="interpolate-slider")
                frames = [_frame(label) for label in COLORS]
                curve = gr.LinePlot(
                    x="step", y="distance", color="model", color_map=COLORS, y_lim=[0, None], height=280,
                    label=f"Distance between neighbours, flat is smooth ({TOLD_COLORS})", x_title="step",
                    y_title="distance", buttons=[], colors_in_legend=[], color_title=" ",
                    elem_id="interpolate-curve",
                )  # fmt: skip
                gr.Markdown("All frames, base above smooth:")
                strips = [_strip(label) for label in COLORS]
                with gr.Row():
                    films = [
                        gr.DownloadButton(f"Film as {kind}", size="sm", interactive=False) for kind in ("GIF", "MP4")
                    ]
            kept = gr.State(None, time_to_live=3600)
        for each in uploads:
            parts.show_uploads(*each)
        outputs = [said, slider, *frames, curve, *strips, *films, kept]
        asked = [first, last, start, end, count, equal, *(file for file, _ in uploads), *settings]
        parts.wire(self.desk, pressed, self.work, [*chosen, *asked], outputs)
        slider.change(_at, [slider, kept], frames, trigger_mode="always_last", **parts.AT_ONCE)

    def work(
        self,
        model: str,
        strength: float,
        compare: bool,
        first: str,
        last: str,
        start: float | None,
        end: float | None,
        count: float,
        equal: bool,
        first_picture: str | None,
        last_picture: str | None,
        steps: float,
        guidance: float,
        null_text: float,
        request: gr.Request,
        bar: gr.Progress = parts.BAR,
    ) -> list[Any]:
        """Paint the frames; gives the updates of all that shows them."""
        with self.desk.job(request, bar) as job:
            edited = self.desk.models.open(model)
            seeds = whole("Seed, from", start), whole("Seed, to", end)
            sampled: dict[str, Any] = {"steps": int(steps), "guidance": float(guidance)}
            uploaded = [each for each in (first_picture, last_picture) if each]
            if len(uploaded) == 1:
                raise ValueError("one picture of two; upload the other one, too, or take it away")
            found, number = {}, min(int(count), MOST_FRAMES)
            strengths = levels(edited, strength, compare)
            with edited.lock:
                for label, level in strengths.items():
                    way: Way
                    if uploaded:
                        way = _real(
                            self.desk, edited, level, uploaded, (first, last), job, int(null_text), sampled, label
                        )
                    else:
                        way = between.generated(edited.at(level), (first, last), seeds, **sampled)
                    found[label] = between.frames(
                        way, number, equal_steps=equal, progress=job.telling(f"painting, {label}")
                    )
            values = {
                "prompts": [first, last], "frames": number, "equal_steps": equal,
                "picture": [name_of(each) for each in uploaded] or None, "null_text_steps": int(null_text),
                "base": self.desk.models.base, **({} if uploaded else {"seed": list(seeds)}), **sampled,
            }  # fmt: skip
            strips: dict[str, str | None] = dict.fromkeys(COLORS)
            for label, made in found.items():
                facts = {"smooth": {"ratios": made.ratios.tolist(), "distances": made.distances.tolist()}}
                data = told.png(
                    "interpolate", edited, media.strip(made.pictures), strength=strengths[label], found=facts, **values
                )
                strips[label] = served(data, f"{label}-strip.png")
            return _shown(found, strips)


def _frame(label: str) -> Any:
    return gr.Image(
        label=label, interactive=False, buttons=[], height=210, format="png", elem_classes="frame",
        elem_id=f"interpolate-{label}",
    )  # fmt: skip


def _strip(label: str) -> Any:
    return gr.Image(
        label=f"{label}, all frames", show_label=False, interactive=False, buttons=["download"], format="png",
        height=64, elem_classes="strip", elem_id=f"interpolate-{label}-strip",
    )  # fmt: skip


def _real(
    desk: Desk,
    edited: EditModel,
    level: float,
    uploaded: list[str],
    prompts: tuple[str, str],
    job: Job,
    null_text: int,
    sampled: dict[str, Any],
    label: str,
) -> Way:
    pipeline = edited.at(level)
    size = image_size(pipeline)
    pictures = np.stack([picture_of(each, size) for each in uploaded])
    inverted = invert(
        pipeline, pictures, prompts, null_text_steps=null_text, shared=True, cache=desk.cache(edited, level),
        progress=job.telling(f"inverting, {label}"), **sampled,
    )  # fmt: skip
    return between.real(pipeline, inverted)


def _shown(found: dict[str, Frames], strips: dict[str, str | None]) -> list[Any]:
    """Updates of all that shows the result."""
    paths = {
        label: [served(told.plain(frame), "frame.png") for frame in made.pictures] for label, made in found.items()
    }
    rows = [
        {"step": index + 1, "distance": float(distance), "model": label}
        for label, made in found.items()
        for index, distance in enumerate(made.distances)
    ]
    spreads = [f"{label} {made.variation_coefficient:.3f}" for label, made in found.items()]
    film = [np.concatenate(each, axis=1) for each in zip(*(made.pictures for made in found.values()), strict=True)]
    count = len(film)
    gif, mp4 = (served(make(np.stack(film)), f"film.{kind}") for kind, make in (("gif", media.gif), ("mp4", media.mp4)))
    return [
        f"Unevenness of the steps (deviation over mean; 0 is even): {', '.join(spreads)}. Move the slider.",
        gr.Slider(minimum=1, maximum=count, value=1, interactive=True),
        *_at(1, paths),
        pd.DataFrame(rows),
        *strips.values(),
        *(gr.DownloadButton(value=path, interactive=True) for path in (gif, mp4)),
        paths,
    ]


def _at(frame: float, paths: dict[str, list[str]] | None) -> list[Any]:
    """The frames of a number, from 1."""
    found = paths or {}
    return [
        gr.Image(value=found[label][min(int(frame), len(found[label])) - 1] if label in found else None)
        for label in COLORS
    ]
