"""Fixtures that several rooms share: a Ray of the tests' own, and the small base model."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Before anything loads OpenMP, for the processes of the tests, too: threads that spin while they wait take the cores
# from whatever the other process of the suite is doing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Ray gives its own server 30 s to start, too few where others compute.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "240")

# A shared machine may stall at any example; slow code is the benchmarks' business.
hypothesis.settings.register_profile("smooth", deadline=None)
hypothesis.settings.load_profile("smooth")


# Files that need the same service of the session; pytest-xdist's own groups do not work with pytest 9.2.
SERVICES = {
    "cluster": ("test_artifact_paths", "test_chain", "test_faults"),
    "another cluster": (  # in the suite's other process: together they would outlast all else
        "test_cluster_upkeep",
        "test_local_cluster",
        "test_promotion",
        "test_reach",  # takes the cluster down
    ),
    "ray": (
        "test_evaluate",
        "test_full_disk",
        "test_hostile_web",
        "test_ingest",
        "test_interruptions",
        "test_latents",
        "test_retry",
        "test_train",
        "test_watch",
    ),
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A service's files first: begun last, they keep one process busy for minutes after the other is done."""
    services = list(SERVICES)
    items.sort(key=lambda item: services.index(scope) if (scope := _scope(item.nodeid)) in SERVICES else len(services))


def _scope(nodeid: str) -> str:
    """The service that a test needs, else its file."""
    file = Path(nodeid.partition("::")[0]).stem
    return next((service for service, files in SERVICES.items() if file in files), file)


class ByService(LoadScopeScheduling):
    """A file's tests share a process, and so do the files of one service."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid)


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
