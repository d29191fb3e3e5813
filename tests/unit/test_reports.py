"""What the flow shows: keys that Prefect accepts, the table of metrics."""

from __future__ import annotations

import io

from rich.console import Console

from flows.reports import picture_key
from smooth.evaluate import table


def test_a_pictures_key_has_only_what_prefect_accepts() -> None:
    assert picture_key("train", "s3://bucket/Validation/Step_000050.png") == "train-step-000050"


def test_the_table_has_a_row_a_metric_and_a_column_a_model() -> None:
    metrics = [
        {"name": "ISTD", "model": "base", "value": 3.25, "low": 3.0, "high": 3.5, "n": 40},
        {"name": "ISTD", "model": "smooth", "value": 1.5, "low": 1.25, "high": 1.75, "n": 40},
        {"name": "KID", "model": "base", "value": 0.5, "low": None, "high": None, "n": 400},
        {
            "name": "FID",
            "model": "base",
            "value": None,
            "low": None,
            "high": None,
            "n": 0,
            "note": "put [it] at /there",
        },
    ]
    console = Console(width=120, file=io.StringIO(), record=True)
    table.show(metrics, console)
    text = console.export_text()
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert lines[3] == ["ISTD", "3.25 [3, 3.5]", "1.5 [1.25, 1.75]", "40"]
    assert lines[4] == ["KID", "0.5", "", "400"]
    assert lines[5] == ["FID", "unavailable", "", "0"]
    assert text.splitlines()[-1] == "unavailable: FID: put [it] at /there"
