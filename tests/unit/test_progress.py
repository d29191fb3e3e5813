"""Progress lines survive the way through a log."""

from __future__ import annotations

import pytest

from smooth import progress
from smooth.progress import Progress, parse


def test_a_reported_line_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    progress.report("train", 3, 12, "steps", loss=0.5, phase="warm")
    line = capsys.readouterr().out
    assert line.endswith("\n")
    read = parse(line)
    assert read is not None
    assert (read.stage, read.done, read.total, read.unit) == ("train", 3, 12, "steps")
    assert read.facts == {"loss": 0.5, "phase": "warm"}
    assert read.percent == 25.0


def test_a_prefix_of_ray_does_not_hide_it() -> None:
    original = Progress("latents", 1, 2, "pictures")
    assert parse(f"(Worker pid=12) {original.line()}") == original


@pytest.mark.parametrize("line", ["", "an ordinary line", f"{progress.PREFIX}{{half", f'{progress.PREFIX}{{"a": 1}}'])
def test_other_lines_hold_no_progress(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(("done", "total", "percent"), [(0, 0, 0.0), (0, 5, 0.0), (5, 5, 100.0), (9, 5, 100.0)])
def test_percent_stays_between_0_and_100(done: int, total: int, percent: float) -> None:
    assert Progress("train", done, total, "steps").percent == percent


def test_progress_is_one_line_for_people() -> None:
    step = Progress("train", 50, 200, "steps", {"loss": 0.123456, "phase": "warm"})
    assert step.text() == "train: 50/200 steps (25 %), loss 0.1235, phase warm"


def test_a_terminal_shows_it_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    progress.report("train", 50, 200, "steps")
    assert capsys.readouterr().out == "train: 50/200 steps (25 %)\n"
