"""The tab that edits a real picture by another prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from smooth.edit import edit as editing
from smooth.edit.generate import image_size
from smooth.edit.invert import invert
from smooth.studio import parts, told
from smooth.studio.desk import Desk, name_of, picture_of, served
from smooth.studio.models import levels

SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SWITCH, SDEDIT = "switch the prompt", "SDEdit (baseline)"
EXPLAINED = (
    "Upload a picture, say what it shows and what it should show instead. The amount decides how much may change: each "
    "one that you tick gives a picture."
)


@dataclass(frozen=True)
class Edit:
    """The tab."""

    desk: Desk

    def build(self, chosen: list[Any]) -> None:
        """Add the tab."""
        with parts.tab("Edit", EXPLAINED):
            with gr.Column(min_width=260):
                file, seen = parts.upload("Your picture", "edit")
                source = gr.Textbox("red heart", label="What it shows", elem_id="edit-source")
                target = gr.Textbox("blue heart", label="What it should show", elem_id="edit-target")
                amounts = gr.CheckboxGroup(
                    [(f"{share:g}", share) for share in SHARES],
                    value=[0.6, 0.8],
                    label="Amount",
                    elem_id="edit-amounts",
                )
                method = gr.Radio([SWITCH, SDEDIT], value=SWITCH, label="Method")
                settings = parts.sampling("edit", null_text=True)
                pressed = parts.buttons("Edit")
            with gr.Column(scale=2):
                result = parts.gallery("edit")
        parts.show_uploads(file, seen)
        parts.wire(self.desk, pressed, self.work, [*chosen, file, source, target, amounts, method, *settings], [result])

    def work(
        self,
        model: str,
        strength: float,
        compare: bool,
        upload: str | None,
        source: str,
        target: str,
        amounts: list[float],
        method: str,
        steps: float,
        guidance: float,
        null_text: float,
        request: gr.Request,
        bar: gr.Progress = parts.BAR,
    ) -> Any:
        """Edit; gives the gallery."""
        with self.desk.job(request, bar) as job:
            picture_of(upload, parts.PREVIEW)
            edited, shares = self.desk.models.open(model), sorted(amounts)
            if not shares:
                raise ValueError("no amount is ticked; tick one or more")
            values: dict[str, Any] = {"steps": int(steps), "guidance": float(guidance)}
            rows = []
            with edited.lock:
                for label, level in levels(edited, strength, compare).items():
                    pipeline = edited.at(level)
                    given = picture_of(upload, image_size(pipeline))[None]
                    progress = job.telling(f"editing, {label}")
                    if method == SDEDIT:
                        made = editing.sdedit(pipeline, given, [target], strengths=shares, progress=progress, **values)
                    else:
                        found = invert(
                            pipeline, given, [source], null_text_steps=int(null_text),
                            cache=self.desk.cache(edited, level), progress=job.telling(f"inverting, {label}"), **values,
                        )  # fmt: skip
                        # One by one: in a batch a picture would differ by rounding from what its own command gives.
                        made = np.concatenate(
                            [
                                editing.edit(pipeline, found, [target], ratios=[share], progress=progress)
                                for share in shares
                            ]
                        )
                    rows.append((label, level, made))
            shown = []
            for index, share in enumerate(shares):
                for label, level, made in rows:
                    named = {"ratio": [share]} | ({} if method == SWITCH else {"sdedit": [share]})
                    data = told.png(
                        "edit", edited, made[index, 0], picture=name_of(str(upload)), source=source, target=target,
                        null_text_steps=int(null_text), base=self.desk.models.base, strength=level, **named, **values,
                    )  # fmt: skip
                    shown.append((served(data, f"{label}-{share:g}.png"), f"{label}, {share:g}"))
            return gr.Gallery(value=shown, columns=max(2, len(rows)))
