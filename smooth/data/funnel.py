"""The picture of an ingest: how many rows each step left, and what it lost to which rule or cause."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from smooth import store

REASONS = 6  # named at a step; the rest is summed up
LEFT, LOST, INK = "#0072B2", "#D55E00", "#333333"  # of Okabe and Ito's palette


def draw_funnel(path: str, steps: Sequence[dict[str, Any]]) -> None:
    """Draw the manifest's ``funnel`` as bars from listed to kept, each with its losses named beside it.

    Args:
        path: PNG on any fsspec path.
        steps: ``step`` (name), ``rows`` left after it, ``lost`` rows by rule or cause.
    """
    from matplotlib.figure import Figure  # a second, for the end of the stage alone

    heights = [max(2, len(_reasons(step["lost"]))) for step in steps]
    figure = Figure(figsize=(11, 0.6 + 0.27 * sum(heights) + 0.25 * len(steps)), dpi=110, layout="constrained")
    axes = figure.subplots()
    total = max(steps[0]["rows"], 1)
    top = 0.0
    for step, height in zip(steps, heights, strict=True):
        middle = top + height / 2
        lost = sum(step["lost"].values())
        thick = min(height, 3) * 0.7
        axes.barh(middle, step["rows"], height=thick, color=LEFT)
        axes.barh(middle, lost, left=step["rows"], height=thick, color=LOST)
        axes.text(-0.42 * total, middle, step["step"], va="center", fontsize=13, color=INK, fontweight="bold")
        share = f"{step['rows']:,}\n{100 * step['rows'] / total:.1f} %"
        axes.text(-0.02 * total, middle, share, ha="right", va="center", fontsize=11, color=LEFT)
        for line, text in enumerate(_reasons(step["lost"])):
            offset = middle + line + 0.5 - len(_reasons(step["lost"])) / 2
            axes.text(1.02 * total, offset, text, va="center", fontsize=10, color=LOST)
        top += height + 0.8
    axes.set_xlim(-0.43 * total, 1.4 * total)
    axes.set_ylim(top - 0.8, -0.3)
    axes.axis("off")
    axes.set_title("Rows of the list that each step left (blue) and lost (orange)", loc="left", fontsize=12, color=INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    store.write_bytes(path, buffer.getvalue())


def _reasons(lost: dict[str, int]) -> list[str]:
    """One text a rule or cause, most first."""
    ordered = sorted(lost.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) > REASONS:
        rest = ordered[REASONS - 1 :]
        ordered = [*ordered[: REASONS - 1], (f"{len(rest)} others", sum(count for _, count in rest))]
    return [f"\N{MINUS SIGN}{count:,}  {name}" for name, count in ordered]
