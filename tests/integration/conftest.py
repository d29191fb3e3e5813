"""A local cluster of the tests' own: another home, other ports, so that a developer's cluster is left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.layout import PORTS, Layout, free_ports
from infra.local.options import VARIABLES
from infra.local.services import OURS
from tests.clusters import ScratchCluster


def scratch(home: Path) -> ScratchCluster:
    ours = (*OURS, *VARIABLES.values())
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    ports = {port.variable: str(number) for port, number in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    return ScratchCluster(Layout(home), inherited | ports | {"SMOOTH_HOME": str(home)})


@pytest.fixture
def stopped_cluster(tmp_path: Path) -> Iterator[ScratchCluster]:
    """A cluster of one test that is not up; whatever is started of it is stopped at the end."""
    cluster = scratch(tmp_path / "smooth-home")
    yield cluster
    assert cluster.local("down").returncode == 0


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScratchCluster]:
    """A cluster that is up, one for all tests that want one."""
    cluster = scratch(tmp_path_factory.mktemp("cluster") / "smooth-home")
    result = cluster.local("up")
    if result.returncode:  # Ray gives up after 30 s where others compute, and a second `up` starts what is missing
        result = cluster.local("up")
    try:
        assert result.returncode == 0, result.stdout + result.stderr
        yield cluster
    finally:
        assert cluster.local("down").returncode == 0
