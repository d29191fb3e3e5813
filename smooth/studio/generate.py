"""The tab that paints a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from smooth.edit import LARGEST_SEED
from smooth.edit import generate as painting
from smooth.studio import parts, told
from smooth.studio.desk import Desk, served, whole
from smooth.studio.models import levels

MOST_PICTURES = 4


@dataclass(frozen=True)
class Generate:
    """The tab."""

    desk: Desk

    def build(self, chosen: list[Any]) -> None:
        """Add the tab."""
        with parts.tab("Generate", "Describe a picture. The same prompt and seed always give the same picture."):
            with gr.Column(min_width=260):
                prompt = gr.Textbox("red heart", label="Prompt", elem_id="generate-prompt")
                seed = gr.Number(7, label="Seed", precision=0, minimum=0, elem_id="generate-seed")
                count = gr.Slider(1, MOST_PICTURES, 2, step=1, label="Pictures", elem_id="generate-count")
                negative = gr.Textbox("", label="Not this", placeholder="what to lead away from (optional)")
                settings = parts.sampling("generate")
                pressed = parts.buttons("Generate")
            with gr.Column(scale=2):
                result = parts.gallery("generate")
        parts.wire(self.desk, pressed, self.work, [*chosen, prompt, seed, count, negative, *settings], [result])

    def work(
        self,
        model: str,
        strength: float,
        compare: bool,
        prompt: str,
        seed: float | None,
        count: float,
        negative: str,
        steps: float,
        guidance: float,
        request: gr.Request,
        bar: gr.Progress = parts.BAR,
    ) -> list[tuple[str, str]]:
        """Paint; gives the gallery's files with their captions."""
        with self.desk.job(request, bar) as job:
            edited = self.desk.models.open(model)
            first = whole("Seed", seed)
            seeds = [min(first + index, LARGEST_SEED) for index in range(whole("Pictures", count))][:MOST_PICTURES]
            painted = {}
            with edited.lock:
                for label, level in levels(edited, strength, compare).items():
                    painted[label] = level, painting.generate(
                        edited.at(level), [prompt] * len(seeds), seeds, steps=int(steps), guidance=float(guidance),
                        negative=negative, progress=job.telling(f"painting, {label}"),
                    )  # fmt: skip
            shown = []
            for index, number in enumerate(seeds):
                for label, (level, pictures) in painted.items():
                    data = told.png(
                        "generate", edited, pictures[index], prompts=[prompt], seed=[number], negative=negative,
                        base=self.desk.models.base, strength=level, steps=int(steps), guidance=float(guidance),
                    )  # fmt: skip
                    shown.append((served(data, f"{label}-{number}.png"), f"{label}, seed {number}"))
            return shown
