"""A local cluster for tests, driven through its command line as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from infra.local.layout import PROJECT, Layout


@dataclass(frozen=True)
class ScratchCluster:
    """A local cluster in a home of its own, on ports of its own."""

    layout: Layout
    environment: dict[str, str]

    def run(self, *command: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=PROJECT,
            env=self.environment | changed,
            capture_output=True,
            text=True,
            check=False,
            timeout=1100,
        )

    def local(self, command: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "infra.local", *command.split(), **changed)

    def status(self) -> dict[str, dict[str, Any]]:
        return {part["name"]: part for part in json.loads(self.local("status --json").stdout)}

    @property
    def state(self) -> dict[str, str]:
        state: dict[str, str] = json.loads(self.layout.state.read_text())
        return state
