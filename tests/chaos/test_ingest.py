"""Ten kills of ingest at random moments, drivers and workers alike: ``python -m pytest tests/chaos -s`` (minutes)."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from smooth.config import RunConfig
from tests import undisturbed
from tests.kills import Stage, survive

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(3600)]


def test_ten_kills_end_in_the_undisturbed_result(tmp_path: Path) -> None:
    with undisturbed.listed(tmp_path, timeout_s=10) as overrides:
        number = count()
        survive(
            Stage("ingest", tmp_path / "log", undisturbed.downloading),
            lambda: [f"storage.root={tmp_path}/{next(number)}", *overrides],
            lambda changes: undisturbed.result(RunConfig.load("tiny", changes)),
        )
