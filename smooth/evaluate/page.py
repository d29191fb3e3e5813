"""An evaluation as one HTML page that needs nothing besides itself: no script, no request, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

# What a change for the better is. Names not here have none: they are what keeps the others honest.
BETTER = {
    "ISTD": "↓", "LPIPS-ISTD": "↓", "variation coefficient": "↓", "KID": "↓", "Fréchet distance": "↓", "FID": "↓",
    "FD-DINOv2": "↓", "CMMD": "↓", "PPL": "↓", "MSE": "↓", "LPIPS": "↓", "CLIP score": "↑", "precision": "↑",
    "recall": "↑", "density": "↑", "coverage": "↑", "SSIM": "↑", "PSNR": "↑",
}  # fmt: skip
CAPTIONS = {
    "strips.png": "From one noise (left) to another (right) in equal steps, the base above the smooth model, with the "
    "same prompt and noises. The smoother the model, the more even the change from picture to picture.",
    "curves.png": "How much each step changes the picture. Faint lines are prompts, the bold one is their mean: flat "
    "is smooth, and a peak is a jump.",
    "histogram.png": "ISTD of each prompt: further left is smoother.",
    "reconstructions.png": "Real pictures, inverted to a noise and painted again from it.",
}
# Measured by its authors on SD 1.5 at 512 px (arXiv 2312.04410, table 1): ISTD, FID, CLIP score.
PUBLISHED = {"Stable Diffusion 1.5": ("38.63", "12.70", "31.46"), "Smooth Diffusion": ("16.54", "12.10", "31.54")}

# Table 2 of the same, 500 COCO pictures: MSE, LPIPS, SSIM, PSNR.
RECONSTRUCTED = {
    "SD + DDIM inversion": (".1756", ".5385", ".2662", "13.97"),
    "Smooth + DDIM inversion": (".1086", ".4326", ".3418", "16.17"),
    "SD + null-text inversion": (".0156", ".1656", ".6068", "25.63"),
    "Smooth + null-text inversion": (".0153", ".1635", ".6102", "25.74"),
    "VAE alone": (".0148", ".1590", ".6136", "25.98"),
}


@dataclass(frozen=True)
class Cost:
    """What an evaluation took."""

    seconds: float
    sampled: int
    """pictures; those that were kept from before are not among them"""
    gpus: float = 0.0
    """that its actors held together"""


def render(
    names: tuple[str, str], metrics: list[dict[str, Any]], pictures: Mapping[str, bytes], cost: Cost, when: str
) -> str:
    """The page.

    Args:
        names: what the smooth model and the base are called.
        metrics: as ``metrics.json`` holds them.
        pictures: PNGs by file name, in the order in which they are shown.
        cost: of the evaluation.
        when: its date.
    """
    environment = Environment(
        loader=PackageLoader("smooth.evaluate"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for metric in metrics:
        by_name.setdefault(metric["name"], {})[metric["model"]] = metric
    found = {name: models for name, models in by_name.items() if any(_known(metric) for metric in models.values())}
    return environment.get_template("page.html.j2").render(
        names=names,
        verdicts=verdicts(found),
        rows=[(name, better(name), models) for name, models in found.items()],
        missing=_missing(by_name),
        notes={name: metric["note"] for name, models in found.items() for metric in models.values() if _noted(metric)},
        stamps=[(name, models[next(iter(models))]["stamp"]) for name, models in found.items()],
        summary=_summary(by_name),
        published=PUBLISHED,
        reconstructions=_reconstructions(by_name),
        reconstructed=RECONSTRUCTED,
        pictures=[(name, CAPTIONS.get(name, name), base64.b64encode(data).decode()) for name, data in pictures.items()],
        cost=cost,
        when=when,
        value=_value,
        interval=_interval,
    )


def better(name: str) -> str:
    """Arrow of a metric's better direction, by the beginning of its name; empty where there is none."""
    return next((arrow for start, arrow in BETTER.items() if name == start or name.startswith(f"{start} ")), "")


def verdicts(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """What the figures say, in words: (kind, sentence), kind is good, bad or open. Intervals decide, not values."""
    return [verdict for verdict in (_smoother(found), _same_variety(found), _quality(found)) if verdict is not None]


def _smoother(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[str, str] | None:
    istd = found.get("ISTD", {})
    if not {"base", "smooth", "smooth - base"} <= istd.keys():
        return None
    difference, ratio = istd["smooth - base"], istd["base"]["value"] / max(istd["smooth"]["value"], 1e-12)
    change = f"ISTD goes from {_value(istd['base'])} to {_value(istd['smooth'])}"
    told = f"the 95 % interval of the paired difference is {_interval(difference)}, over {difference['n']} prompts"
    if difference["high"] < 0:
        return "good", f"Smoother: {change}, {ratio:.2f} times lower; {told}, all of it below 0."
    if difference["low"] > 0:
        return "bad", f"Less smooth: {change}; {told}, all of it above 0."
    return "open", f"Not surely smoother: {change}, but {told}, and holds 0. More prompts make it narrower."


def _same_variety(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[str, str] | None:
    """A model that paints the same for every prompt is smooth, too."""
    diversity = found.get("sample diversity", {})
    if not all(_known(diversity.get(model)) for model in ("base", "smooth")):
        return None
    base, smooth = diversity["base"], diversity["smooth"]
    share = f"{100 * smooth['value'] / base['value']:.0f} %"
    kept = f"{share} of the base's sample diversity is left"
    if smooth["high"] < base["low"]:
        return "bad", f"Less variety: {kept}, and the intervals do not meet. Part of the smoothness may be sameness."
    if smooth["low"] > base["high"]:
        return "good", f"More variety: sample diversity is {share} of the base's, and the intervals do not meet."
    return "good", f"Variety is kept: {kept}, and the intervals meet."


def _quality(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[str, str] | None:
    for name, models in found.items():
        if name.startswith("KID") and all(_known(models.get(model)) for model in ("base", "smooth")):
            base, smooth = models["base"], models["smooth"]
            change = f"{name} goes from {_value(base)} {_interval(base)} to {_value(smooth)} {_interval(smooth)}"
            if smooth["low"] > base["high"]:
                return "bad", f"Quality is lost: {change}."
            if smooth["high"] < base["low"]:
                return "good", f"Quality is won: {change}."
            return "open", f"No difference in quality can be told: {change}, and the intervals overlap."
    return None


def _summary(by_name: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, list[str]]]:
    """Base and smooth in the columns of the paper's table 1: ISTD, FID, CLIP score."""
    rows = []
    for model in ("base", "smooth"):
        cells = []
        for column in ("ISTD", "FID", "CLIP score"):
            name = next((name for name in by_name if name == column or name.startswith(f"{column} ")), None)
            metric = by_name[name].get(model) if name else None
            cells.append(_value(metric) if metric is not None and _known(metric) else "–")
        rows.append((model, cells))
    return rows


def _reconstructions(by_name: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, str, list[str]]]:
    """Model, way and cells of the paper's table 2; empty where nothing was inverted."""
    rows = []
    for model, way in (
        *((model, way) for way in ("DDIM inversion", "null-text inversion") for model in ("base", "smooth")),
        ("base", "VAE alone"),
    ):
        found = [by_name.get(f"{measure} ({way})", {}).get(model) for measure in ("MSE", "LPIPS", "SSIM", "PSNR")]
        if any(metric is not None for metric in found):
            cells = [_value(metric) if metric is not None and _known(metric) else "–" for metric in found]
            rows.append((model, way, cells))
    return rows


def _missing(by_name: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Why metrics have no value, by the names of those that share the reason."""
    names: dict[str, list[str]] = {}
    for name, models in by_name.items():
        for note in {metric["note"] for metric in models.values() if not _known(metric)}:
            names.setdefault(note, []).append(name)
    return {", ".join(found): note for note, found in names.items()}


def _known(metric: Mapping[str, Any] | None) -> bool:
    return metric is not None and metric["value"] is not None


def _noted(metric: Mapping[str, Any]) -> bool:
    return bool(_known(metric) and metric["note"])


def _value(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.4g}"


def _interval(metric: Mapping[str, Any]) -> str:
    return "" if metric["low"] is None else f"[{metric['low']:.4g}, {metric['high']:.4g}]"
