"""Progress of the latents: counts that a killed actor can't spoil, and few lines."""

from __future__ import annotations

import pytest

from smooth import progress
from smooth.data import tally
from smooth.data.tally import Tally, reported


def test_a_part_that_is_begun_anew_is_counted_once() -> None:
    counts = Tally()
    assert [counts.begin("a"), counts.begin("a"), counts.begin("b")] == [1, 2, 1]
    counts.put("a", 200, 1)
    counts.put("b", 50, 0)
    counts.put("a", 100, 1)
    assert counts.total() == (150, 1)


def test_lines_tell_rate_time_left_and_failures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "POLL_SECONDS", 0.001)
    done = iter([*range(0, 1000, 2), *[1000] * 10**6])
    with reported(lambda: (next(done), 3), before=1000, total=2000):
        while next(done) < 1000:
            pass
    lines = [progress.parse(line) for line in capsys.readouterr().out.splitlines()]
    found = [line for line in lines if line is not None]
    assert 2 <= len(found) == len(lines) <= tally.PROGRESS_LINES + 1
    assert (found[0].done, found[-1].done, found[-1].total) == (1000, 2000, 2000)
    assert found[-1].facts["failed"] == 3
    assert found[-1].facts["seconds_left"] == 0
    assert float(found[-1].facts["pictures_per_second"]) > 0
