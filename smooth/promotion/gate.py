"""The gate: evidence of a candidate and of what it is to replace in, a table of lines out. Nothing is read here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smooth.evaluate.istd import bootstrap
from smooth.evaluate.metric import StampError
from smooth.evaluate.networks import EFFICIENTNET, FID, INCEPTION
from smooth.evaluate.smoothness import ISTD
from smooth.promotion import PromotionError
from smooth.promotion.drawing import Drawn
from smooth.promotion.evidence import Evidence, Measured

CLIP_SCORE = "CLIP score"
QUALITY = (FID, f"KID ({INCEPTION}) x1000", f"KID ({EFFICIENTNET}) x1000")
"""the first that both models have is judged; less is better for all"""
AGAIN = "evaluate and register it again: run smooth-train/full with its preset and overrides"


class GateError(PromotionError):
    """The gate is closed; the message names each line that failed, and by how much."""


@dataclass(frozen=True)
class Margins:
    """How much worse than what it replaces a candidate may be."""

    quality: float = 1.1
    """times its FID or KID"""
    clip: float = 0.5
    """points of CLIP score"""

    def __post_init__(self) -> None:
        if not self.quality >= 1 or not self.clip >= 0:
            raise PromotionError(
                f"quality_margin={self.quality:g} must be 1 or more (times the FID or KID of what it replaces) and "
                f"clip_margin={self.clip:g} 0 or more (points)"
            )


@dataclass(frozen=True)
class Line:
    """One condition. ``passed`` is None where it can't be judged and need not be."""

    name: str
    passed: bool | None
    figure: str
    margin: str
    words: str

    @property
    def verdict(self) -> str:
        """For people."""
        return {True: "passed", False: "FAILED", None: "unavailable"}[self.passed]


def check(lines: Sequence[Line]) -> None:
    """Let pass or refuse.

    Raises:
        GateError: a line failed.
    """
    failed = [line for line in lines if line.passed is False]
    if failed:
        told = "; ".join(f"{line.name}: {line.words}" for line in failed)
        raise GateError(f"the gate is closed, {len(failed)} of {len(lines)} lines failed, nothing was changed: {told}")


def judge(candidate: Evidence, reference: Measured, margins: Margins, drawn: Drawn) -> list[Line]:
    """All lines, in the order in which they are shown. ``reference`` is production, or the candidate's own base."""
    ours = candidate.measured
    return [
        _protocol(ours, reference),
        _istd(ours, reference),
        _quality(ours, reference, margins.quality),
        _clip(ours, reference, margins.clip),
        _lineage(candidate, drawn),
        Line("load", drawn.picture is not None, drawn.figure, "one picture", drawn.words),
    ]


def table(lines: Sequence[Line]) -> str:
    """Markdown."""
    cells = ([line.name, line.verdict, line.figure, line.margin, line.words] for line in lines)
    rows = ["| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in row) + " |" for row in cells]
    return "\n".join(["| line | | figure | allowed | |", "|---|---|---|---|---|", *rows])


def _protocol(ours: Measured, reference: Measured) -> Line:
    """Stamps agree wherever both have a value; ISTD must have one."""
    margin = "same stamps"
    for each in (ours, reference):
        if _value(ISTD, each) is None:
            words = f"the registry has no ISTD of {each.name}; {AGAIN}"
            return Line("protocol", False, "no evaluation", margin, words)
    pairs = {name: _pair(name, ours, reference) for name in (ISTD, _shared(ours, reference), CLIP_SCORE) if name}
    measured = {name: pair for name, pair in pairs.items() if pair is not None}
    for name, pair in measured.items():
        if pair.differing:
            return Line("protocol", False, name, margin, f"against {reference.name}: {pair.differing}")
    return Line("protocol", True, ", ".join(measured), margin, f"{ours.name} and {reference.name} were measured alike")


def _istd(ours: Measured, reference: Measured) -> Line:
    margin = "95 % interval below 0"
    for each in (ours, reference):
        if not each.istd:
            return Line(ISTD, False, "none", margin, f"the registry has no values by prompt of {each.name}; {AGAIN}")
    pair = _pair(ISTD, ours, reference)
    if pair is None or pair.differing or len(ours.istd) != len(reference.istd):
        return Line(ISTD, False, "no pairs", margin, f"{reference.name} was measured otherwise")
    # As the evaluation's own paired difference: the seed is the protocol's.
    found = bootstrap(np.subtract(ours.istd, reference.istd), int(ours.metrics[ISTD].stamp["seed"]))
    figure = f"{found.value:+.4g} [{found.low:+.4g}, {found.high:+.4g}]"
    if found.high < 0:
        return Line(ISTD, True, figure, margin, f"smoother than {reference.name}, on {len(ours.istd)} prompts")
    words = f"not shown to be smoother than {reference.name}: the interval ends {found.high:.4g} above 0"
    return Line(ISTD, False, figure, margin, words)


def _quality(ours: Measured, reference: Measured, times: float) -> Line:
    name = _shared(ours, reference)
    pair = _pair(name, ours, reference) if name else None
    if name is None or pair is None:
        words = f"no FID or KID that both {ours.name} and {reference.name} have; {AGAIN}"
        return Line("quality", False, "none", f"at most {times:g} times", words)
    limit = pair.other + (times - 1) * abs(pair.other)  # KID is unbiased, and may be below 0
    figure, margin = f"{pair.value:.4g}", f"at most {limit:.4g}, {times:g} times {pair.other:.4g}"
    if pair.differing:
        return Line(name, False, figure, margin, f"{reference.name} was measured otherwise")
    words = f"{pair.value - pair.other:+.4g} against {reference.name}"
    if pair.value <= limit:
        return Line(name, True, figure, margin, words)
    return Line(name, False, figure, margin, f"worse: {words}, {pair.value - limit:.4g} over the limit")


def _clip(ours: Measured, reference: Measured, points: float) -> Line:
    margin = f"at most {points:g} points less"
    pair = _pair(CLIP_SCORE, ours, reference)
    if pair is None:
        lacking = ours if _value(CLIP_SCORE, ours) is None else reference
        metric = lacking.metrics.get(CLIP_SCORE)
        note = metric.note if metric is not None and metric.note else "not measured"
        # What production can show, its successor has to show, too.
        failed = False if _value(CLIP_SCORE, reference) is not None else None
        return Line(CLIP_SCORE, failed, "none", margin, f"of {lacking.name}: {note}")
    figure, difference = f"{pair.value:.4g}", pair.value - pair.other
    if pair.differing:
        return Line(CLIP_SCORE, False, figure, margin, f"{reference.name} was measured otherwise")
    words = f"{difference:+.4g} against {pair.other:.4g} of {reference.name}"
    if difference >= -points:
        return Line(CLIP_SCORE, True, figure, margin, words)
    return Line(CLIP_SCORE, False, figure, margin, f"{words}, {-points - difference:.4g} below the limit")


def _lineage(candidate: Evidence, drawn: Drawn) -> Line:
    missing = list(candidate.missing)
    metric = candidate.measured.metrics.get(ISTD)
    if metric is not None and drawn.base_identity not in (None, metric.stamp.get("base")):
        missing.append(f"an evaluation on the base that it was registered with, {drawn.base_identity}")
    if missing:
        return Line("lineage", False, f"{len(missing)} missing", "nothing missing", "missing: " + ", ".join(missing))
    return Line("lineage", True, "complete", "nothing missing", "leads back to the list of URLs")


@dataclass(frozen=True)
class _Pair:
    """A metric of the candidate and of what it is to replace."""

    value: float
    other: float
    differing: str
    """why the two do not compare; empty where they do"""


def _pair(name: str, ours: Measured, reference: Measured) -> _Pair | None:
    """None where one has no value."""
    value, other = _value(name, ours), _value(name, reference)
    if value is None or other is None:
        return None
    try:
        ours.metrics[name].compare(reference.metrics[name])
    except StampError as error:
        return _Pair(value, other, str(error))
    return _Pair(value, other, "")


def _value(name: str, measured: Measured) -> float | None:
    metric = measured.metrics.get(name)
    return None if metric is None else metric.value


def _shared(ours: Measured, reference: Measured) -> str | None:
    """The metric of quality that both have; an FID that calls itself biased gives way to KID."""

    def serves(name: str, measured: Measured) -> bool:
        return _value(name, measured) is not None and not (name == FID and measured.metrics[name].note)

    return next((name for name in QUALITY if serves(name, ours) and serves(name, reference)), None)
