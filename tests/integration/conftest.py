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
from tests.services import scope_of


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


UP = pytest.StashKey[ScratchCluster]()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> ScratchCluster:
    """A cluster that is up, one for all tests that want one; their last one takes it down."""
    cluster = scratch(tmp_path_factory.mktemp("cluster") / "smooth-home")
    pytestconfig.stash[UP] = cluster
    result = cluster.local("up")
    if result.returncode:  # Ray gives up after 30 s where others compute, and a second `up` starts what is missing
        result = cluster.local("up")
    assert result.returncode == 0, result.stdout + result.stderr
    return cluster


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Take the cluster down after the last test that wants it: to the session's end it would take from the others."""
    is_last = nextitem is None or scope_of(nextitem.nodeid) != scope_of(item.nodeid)
    if is_last and UP in item.config.stash:
        cluster = item.config.stash[UP]
        del item.config.stash[UP]
        assert cluster.local("down").returncode == 0
