"""What `make promote` hands over, as it was typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with this Python, and a `prefect` that prints its last argument."""
    (tmp_path / "python").symlink_to(sys.executable)
    (tmp_path / "prefect").write_text("#!/bin/sh\nfor last; do :; done\nprintf '%s' \"$last\"\n")
    (tmp_path / "prefect").chmod(0o755)
    return tmp_path


def make(programs: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--old-file=setup", f"BIN={programs}", *arguments]
    # `make test` hands its own variables down; with MAKELEVEL the make below would tell of folders on stdout.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = {name: value for name, value in kept.items() if name not in ("VERSION", "WHY", "WHO")}
    return subprocess.run(
        command, cwd=PROJECT, env=environment | variables, capture_output=True, text=True, check=False
    )


def test_a_reason_arrives_as_it_was_typed_and_nothing_in_it_is_run(programs: Path) -> None:
    why = f"""costs $5 "less", it's `touch {programs}/run` $(shell touch {programs}/run)"""
    result = make(programs, "promote", "VERSION=3", f"WHY={why}", "WHO=ana")
    assert json.loads(result.stdout) == {"version": "3", "why": why, "who": "ana"}
    assert not (programs / "run").exists()


def test_a_version_in_the_environment_is_nobodys_wish(programs: Path) -> None:
    assert json.loads(make(programs, "rollback", "WHO=ana", VERSION="7").stdout) == {"who": "ana"}
    result = make(programs, "promote", VERSION="7")
    assert result.returncode != 0
    assert "make promote VERSION=candidate" in result.stderr
