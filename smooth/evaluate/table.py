"""Metrics as a table for a terminal: one row a metric, one column a model. Loads neither torch nor Ray."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show(metrics: list[dict[str, Any]], console: Console) -> None:
    """Print the metrics of a manifest with their 95 % intervals, and below, in full, why some have no value."""
    console.print(_table(metrics))
    reasons: dict[str, list[str]] = {}
    for name, reason in unavailable(metrics).items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        console.print(f"unavailable: {', '.join(names)}: {reason}", highlight=False, soft_wrap=True, markup=False)


def unavailable(metrics: list[dict[str, Any]]) -> dict[str, str]:
    """Name and reason of each metric that has no value for some model."""
    return {metric["name"]: metric["note"] for metric in metrics if metric["value"] is None}


def _table(metrics: list[dict[str, Any]]) -> Table:
    models = list(dict.fromkeys(metric["model"] for metric in metrics))
    table = Table("metric", *models, "n")
    for name in dict.fromkeys(metric["name"] for metric in metrics):
        cells = {metric["model"]: metric for metric in metrics if metric["name"] == name}
        values = [_interval(cells[model]) if model in cells else "" for model in models]
        table.add_row(name, *values, str(next(iter(cells.values()))["n"]))
    return table


def _interval(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "unavailable"
    interval = "" if metric["low"] is None else f" \\[{metric['low']:.4g}, {metric['high']:.4g}]"
    return f"{metric['value']:.4g}{interval}"
