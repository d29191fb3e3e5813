"""From the evaluations of all arms to figures over seeds: means with intervals, ratios to the control, the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from smooth.evaluate.compare import ISTD, KID
from smooth.evaluate.smoothness import COEFFICIENT, DISTANCE, DIVERSITY
from smooth.sweep.arms import BASE, CONTROL

COLUMNS = (ISTD, KID, COEFFICIENT, DISTANCE, DIVERSITY)
Metrics = Sequence[Mapping[str, Any]]  # of one evaluation, as its manifest has them


@dataclass(frozen=True)
class Figure:
    """A mean over seeds with its 95 % interval."""

    mean: float
    low: float | None
    high: float | None
    each: tuple[float, ...]
    """of each seed"""


@dataclass(frozen=True)
class Point:
    """What was found of an arm."""

    name: str
    values: dict[str, Figure]
    ratios: dict[str, Figure]
    """to the control on the same seed: same samples, prompts and noises; none where a value is not above 0"""


def points(found: Mapping[str, Sequence[Metrics]]) -> list[Point]:
    """The base and each arm; ``found`` has an arm's metrics by seed, the control's among them."""
    control = [_of(metrics, "smooth") for metrics in found[CONTROL]]
    made = [_point(BASE, [_of(metrics, "base") for metrics in found[CONTROL]], control)]
    for name, seeds in found.items():
        made.append(_point(name, [_of(metrics, "smooth") for metrics in seeds], control))
    return made


def front(among: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both ISTD and KID, by rising ISTD."""
    ordered = sorted(among, key=lambda point: (point.values[ISTD].mean, point.values[KID].mean))
    kept: list[Point] = []
    for point in ordered:
        if not kept or point.values[KID].mean < kept[-1].values[KID].mean:
            kept.append(point)
    return kept


def recommend(among: Sequence[Point], margin: float) -> tuple[Point | None, str]:
    """The smoothest arm whose KID is at most ``margin`` times the control's, and why."""
    arms = [point for point in among if point.name not in (BASE, CONTROL) and {ISTD, KID} <= point.ratios.keys()]
    allowed = [point for point in arms if point.ratios[KID].mean <= margin]
    smoother = [point for point in allowed if point.ratios[ISTD].mean < 1]
    if not smoother:
        if not arms:
            return None, "Nothing was trained beside the control that compares with it by a ratio."
        nearest = min(arms, key=lambda point: point.ratios[KID].mean)
        return None, (
            f"No arm is smoother than the control at a KID of at most {margin:g} times its own. Nearest in KID is "
            f"{nearest.name} with {_ratio(nearest, KID)} at {_ratio(nearest, ISTD)} of the ISTD: try more steps, a "
            "smaller λ or learning rate, or allow a wider margin."
        )
    best = min(smoother, key=lambda point: point.ratios[ISTD].mean)
    why = (
        f"{best.name}: the least ISTD, {_ratio(best, ISTD)} of the control's, among the {len(allowed)} of {len(arms)} "
        f"arms whose KID is at most {margin:g} times the control's (its own: {_ratio(best, KID)})."
    )
    if DIVERSITY in best.ratios:
        why += f" It keeps {_ratio(best, DIVERSITY)} of the control's sample diversity."
    high = best.ratios[ISTD].high
    if high is None:
        why += " One seed tells nothing of the spread between seeds: give more before relying on it."
    elif high >= 1:
        why += " The interval over seeds holds 1, so it may be chance: more seeds or steps tell."
    return best, why


def table(among: Sequence[Point]) -> str:
    """Markdown: one row an arm, means with intervals, and below them each seed's values."""
    columns = [name for name in COLUMNS if all(name in point.values for point in among)]
    arrows = {ISTD: " ↓", KID: " ↓", COEFFICIENT: " ↓"}
    heads = ["", f"{ISTD} / control", f"{KID} / control", *(name + arrows.get(name, "") for name in columns)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for point in among:
        ratios = [_cell(point.ratios[name], 3) if name in point.ratios else "–" for name in (ISTD, KID)]
        lines.append(f"| {' | '.join([point.name, *ratios, *(_cell(point.values[name]) for name in columns)])} |")
    return "\n".join(lines)


def _of(metrics: Metrics, model: str) -> dict[str, float]:
    return {
        metric["name"]: metric["value"]
        for metric in metrics
        if metric["model"] == model and metric["name"] in COLUMNS and metric["value"] is not None
    }


def _point(name: str, seeds: Sequence[Mapping[str, float]], control: Sequence[Mapping[str, float]]) -> Point:
    known = [column for column in COLUMNS if all(column in values for values in (*seeds, *control))]
    return Point(
        name,
        {column: _over_seeds([values[column] for values in seeds]) for column in known},
        {
            column: _ratio_over_seeds(
                [values[column] / own[column] for values, own in zip(seeds, control, strict=True)]
            )
            for column in known
            if min(min(values[column], own[column]) for values, own in zip(seeds, control, strict=True)) > 0
        },
    )


def _over_seeds(values: Sequence[float]) -> Figure:
    """Mean and Student's interval; one seed has none."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Figure(mean, None, None, tuple(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Figure(mean, mean - half, mean + half, tuple(values))


def _ratio_over_seeds(values: Sequence[float]) -> Figure:
    """Ratios multiply: geometric mean, and Student's interval of the logarithm."""
    found = _over_seeds(np.log(values).tolist())
    if found.low is None or found.high is None:
        return Figure(float(np.exp(found.mean)), None, None, tuple(values))
    low, mean, high = np.exp([found.low, found.mean, found.high]).tolist()
    return Figure(mean, low, high, tuple(values))


def _ratio(point: Point, name: str) -> str:
    return f"{point.ratios[name].mean:.2f}"


def _cell(figure: Figure, digits: int = 4) -> str:
    def number(value: float) -> str:
        return f"{value:.{digits}g}"

    if figure.low is None or figure.high is None:
        return number(figure.mean)
    each = ", ".join(number(value) for value in figure.each)
    return f"{number(figure.mean)} [{number(figure.low)}, {number(figure.high)}] ({each})"
