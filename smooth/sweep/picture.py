"""The picture of a sweep: smoothness against quality, each arm a point, and the front that no arm beats in both."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from smooth import store
from smooth.evaluate.compare import ISTD, KID
from smooth.sweep.arms import BASE, CONTROL
from smooth.sweep.figures import Point, front

GREY, BLUE, GREEN = "#6c757d", "#0072B2", "#009E73"


def draw(path: str, among: Sequence[Point], best: Point | None, margin: float) -> None:
    """Write the picture.

    Args:
        path: PNG on any fsspec path.
        among: base, control and arms.
        best: the recommended arm, ringed.
        margin: times the control's KID, beyond which quality is lost.
    """
    canvas = Canvas(figsize=(8.4, 5.4), dpi=110, layout="constrained")
    axis = canvas.subplots()
    kept = front(among)
    axis.plot([p.values[ISTD].mean for p in kept], [p.values[KID].mean for p in kept], color=GREEN, linewidth=1.4,
              zorder=1, label="not beaten in both")  # fmt: skip
    for point in among:
        _mark(axis, point, GREY if point.name in (BASE, CONTROL) else BLUE)
    control = next(point for point in among if point.name == CONTROL)
    axis.axhline(margin * control.values[KID].mean, color=GREY, linewidth=1, linestyle=":",
                 label=f"{margin:g} × KID of the control")  # fmt: skip
    if best is not None:
        axis.scatter(best.values[ISTD].mean, best.values[KID].mean, s=260, facecolors="none", edgecolors=GREEN,
                     linewidths=2, zorder=4, label="recommended")  # fmt: skip
    axis.set_xlabel(f"{ISTD}  (left is smoother)")
    axis.set_ylabel(f"{KID}  (down is better)")
    axis.margins(x=0.16, y=0.12)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=9)
    seeds = len(among[0].values[ISTD].each)
    axis.set_title("What smoothness costs" + (f": means of {seeds} seeds, which are the small dots" * (seeds > 1)))
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    store.write_bytes(path, buffer.getvalue())


def _mark(axis: Axes, point: Point, colour: str) -> None:
    istd, kid = point.values[ISTD], point.values[KID]
    if len(istd.each) > 1:
        axis.scatter(istd.each, kid.each, s=9, color=colour, alpha=0.45, zorder=2)
        for x, y in zip(istd.each, kid.each, strict=True):
            axis.plot([istd.mean, x], [kid.mean, y], color=colour, linewidth=0.6, alpha=0.3, zorder=1)
    axis.scatter(istd.mean, kid.mean, s=46, color=colour, zorder=3)
    place = (7, -13) if point.name == BASE else (7, 5)  # base and control are near each other
    axis.annotate(_short(point.name), (istd.mean, kid.mean), xytext=place, textcoords="offset points", fontsize=9,
                  color=colour, zorder=5)  # fmt: skip


def _short(name: str) -> str:
    """Without the path of keys: ``train.method=full`` is ``method=full``."""
    return " ".join(part.rpartition(".")[2] if "=" in part and "." in part else part for part in name.split())
