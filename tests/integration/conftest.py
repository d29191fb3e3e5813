"""A local cluster of the tests' own: another home, other ports, so that a developer's cluster is left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from infra.local.layout import PORTS, Layout, free_ports
from infra.local.services import OURS
from tests.clusters import ScratchCluster


@pytest.fixture(scope="session")
def stopped_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScratchCluster]:
    """A cluster that is not up; whatever is started of it is stopped at the end."""
    home = tmp_path_factory.mktemp("cluster") / "smooth-home"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
    ports = {port.variable: str(number) for port, number in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    cluster = ScratchCluster(Layout(home), inherited | ports | {"SMOOTH_HOME": str(home)})
    yield cluster
    assert cluster.local("down").returncode == 0


@pytest.fixture(scope="session")
def cluster(stopped_cluster: ScratchCluster) -> ScratchCluster:
    """A cluster that is up."""
    result = stopped_cluster.local("up")
    assert result.returncode == 0, result.stdout + result.stderr
    return stopped_cluster
