"""Fixtures that several rooms share: a Ray of the tests' own, and the small base model."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from functools import partial

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.services import SERVICES, scope_of

# Before anything loads OpenMP, for the processes of the tests, too: threads that spin while they wait take the cores
# from whatever the other process of the suite is doing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Ray gives its own server 30 s to start, too few where others compute.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "240")

# A shared machine may stall at any example; slow code is the benchmarks' business.
hypothesis.settings.register_profile("smooth", deadline=None)
hypothesis.settings.load_profile("smooth")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A service's files first: begun last, they keep one process busy for minutes after the other is done."""
    services = list(SERVICES)
    items.sort(
        key=lambda item: services.index(scope) if (scope := scope_of(item.nodeid)) in SERVICES else len(services)
    )


class ByService(LoadScopeScheduling):
    """A file's tests share a process, and so do the files of one service."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """What ``--numprocesses`` uses."""
    return ByService(config, log)


@pytest.fixture(scope="session")
def tiny_base() -> str:
    """Name or folder of the base model under test; ``SMOOTH_TEST_BASE`` puts another in its place."""
    return os.environ.get("SMOOTH_TEST_BASE", "builtin:tiny")


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base whose UNet is next to nothing, where it is not the pictures that are looked at."""
    from tests import small

    return small.write_pipeline(tmp_path_factory.mktemp("small") / "base")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of two CPUs in this session, joined by `smooth.cluster.connect`."""
    import ray

    start = partial(ray.init, address="local", num_cpus=2, include_dashboard=False, logging_level=logging.WARNING)
    # Not under pytest's tmp_path: the sockets' paths would be too long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            start(_temp_dir=f"{folder}/1")
        except Exception:  # noqa: BLE001 - what Ray raises where its node is not up in 30 s: others compute
            start(_temp_dir=f"{folder}/2")
        yield
        ray.shutdown()
