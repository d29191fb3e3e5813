"""The tab that finds the noise of a real picture and paints it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from smooth.edit import invert as inverting
from smooth.edit import media
from smooth.edit.generate import image_size
from smooth.evaluate.reconstruction import PSNR, measure
from smooth.models.pipeline import decode_latents
from smooth.studio import parts, told
from smooth.studio.desk import Desk, name_of, picture_of, served
from smooth.studio.interpolate import COLORS, TOLD_COLORS
from smooth.studio.models import levels

EXPLAINED = (
    "Upload a picture and say what it shows. The model finds the noise that it comes from and paints it again. "
    "The nearer to *VAE alone*, which is the best that can come back, the better the model can edit it."
)


@dataclass(frozen=True)
class Invert:
    """The tab."""

    desk: Desk

    def build(self, chosen: list[Any]) -> None:
        """Add the tab."""
        with parts.tab("Invert", EXPLAINED):
            with gr.Column(min_width=260):
                file, seen = parts.upload("Your picture", "invert")
                prompt = gr.Textbox("red heart", label="What it shows", elem_id="invert-prompt")
                settings = parts.sampling("invert", null_text=True)
                pressed = parts.buttons("Invert")
            with gr.Column(scale=2):
                result = parts.gallery("invert")
                table = gr.Dataframe(
                    headers=["picture", "PSNR (dB), more is better"], interactive=False,
                    label="How near it comes back", elem_id="invert-table", buttons=[],
                )  # fmt: skip
                curve = gr.LinePlot(
                    x="step", y="error", color="model", color_map=COLORS, y_lim=[0, None], height=280,
                    label=f"Error in latents on the way back ({TOLD_COLORS})", x_title="step", y_title="error",
                    buttons=[], colors_in_legend=[], color_title=" ",
                )  # fmt: skip
        parts.show_uploads(file, seen)
        parts.wire(self.desk, pressed, self.work, [*chosen, file, prompt, *settings], [result, table, curve])

    def work(
        self,
        model: str,
        strength: float,
        compare: bool,
        upload: str | None,
        prompt: str,
        steps: float,
        guidance: float,
        null_text: float,
        request: gr.Request,
        bar: gr.Progress = parts.BAR,
    ) -> list[Any]:
        """Invert and paint again; gives gallery, table and curve."""
        with self.desk.job(request, bar) as job:
            picture_of(upload, parts.PREVIEW)
            edited = self.desk.models.open(model)
            values: dict[str, Any] = {
                "steps": int(steps),
                "guidance": float(guidance),
                "null_text_steps": int(null_text),
            }
            shown: list[tuple[str, str]] = []
            ratios, errors = [], []
            with edited.lock:
                for label, level in levels(edited, strength, compare).items():
                    pipeline = edited.at(level)
                    given = picture_of(upload, image_size(pipeline))[None]
                    found = inverting.invert(
                        pipeline, given, [prompt], cache=self.desk.cache(edited, level),
                        progress=job.telling(f"inverting, {label}"), **values,
                    )  # fmt: skip
                    back = inverting.reconstruct(pipeline, found, progress=job.telling(f"painting, {label}"))
                    if not shown:
                        bound = decode_latents(pipeline, found.clean.to(pipeline.device))
                        shown = [_plain(given[0], "your picture"), _plain(bound[0], "VAE alone")]
                        ratios = [["VAE alone", _psnr(given, bound)]]
                    data = told.png(
                        "invert", edited, back[0], picture=name_of(str(upload)), prompt=prompt, alone=True,
                        base=self.desk.models.base, strength=level, **values,
                    )  # fmt: skip
                    shown.append((served(data, f"{label}-back.png"), f"{label}: came back"))
                    ratios.append([f"{label}: came back", _psnr(given, back)])
                    told_errors = found.found.errors[:, 0].tolist()
                    errors += [{"step": at + 1, "error": each, "model": label} for at, each in enumerate(told_errors)]
            return [shown, ratios, pd.DataFrame(errors)]


def _plain(picture: media.Picture, caption: str) -> tuple[str, str]:
    return served(told.plain(picture), "picture.png"), caption


def _psnr(given: np.ndarray[Any, Any], painted: np.ndarray[Any, Any]) -> float:
    return round(float(measure(given, painted)[PSNR][0]), 2)
