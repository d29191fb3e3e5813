"""Fixtures that several rooms share: a Ray of the tests' own, and the small base model."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

# A shared machine may stall at any example; slow code is the benchmarks' business.
hypothesis.settings.register_profile("smooth", deadline=None)
hypothesis.settings.load_profile("smooth")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist a file's tests share a process, and so do files that need the same service of the session."""
    services = {"test_chain": "cluster", "test_local_cluster": "cluster"}
    services |= dict.fromkeys(
        [
            "test_train",
            "test_latents",
            "test_evaluate",
            "test_ingest",
            "test_retry",
            "test_hostile_web",
            "test_interruptions",
        ],
        "ray",
    )
    for item in items:
        item.add_marker(pytest.mark.xdist_group(services.get(item.path.stem, item.path.stem)))


@pytest.fixture(scope="session")
def tiny_base() -> str:
    """Name or folder of the base model under test; ``SMOOTH_TEST_BASE`` puts another in its place."""
    return os.environ.get("SMOOTH_TEST_BASE", "builtin:tiny")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of two CPUs in this session, joined by `smooth.cluster.connect`."""
    import ray

    # Not under pytest's tmp_path: the sockets' paths would be too long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, logging_level=logging.WARNING)
        yield
        ray.shutdown()
