"""Ingest is killed, interrupted and kept from writing: nothing is lost, nothing is left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smooth import store
from smooth.config import RunConfig
from smooth.data import ingest
from tests import undisturbed

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with undisturbed.listed(tmp_path_factory.mktemp("list"), timeout_s=2) as overrides:
        yield overrides


@pytest.fixture(scope="module")
def calm(ray_local: None, overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = undisturbed.config_of(tmp_path_factory.mktemp("calm"), overrides)
    ingest.run(config)
    return config


def once_a_shard_is_begun(config: RunConfig, strike: Callable[[], None]) -> threading.Thread:
    """Strike from another thread as soon as a shard is open and not finished."""
    folder = Path(config.stage_dir("ingest"))

    def watch() -> None:
        while not list(folder.glob("*.tar")):
            time.sleep(0.01)
        time.sleep(0.2)
        strike()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def nobody_downloads() -> bool:
    deadline = time.monotonic() + 60
    while undisturbed.downloading() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not undisturbed.downloading()


def test_a_killed_worker_costs_nothing_but_time(calm: RunConfig, overrides: list[str], tmp_path: Path) -> None:
    config = undisturbed.config_of(tmp_path, overrides)
    killed: list[int] = []

    def kill() -> None:
        worker = undisturbed.downloading()[0]
        worker.kill()
        killed.append(worker.pid)

    thread = once_a_shard_is_begun(config, kill)
    ingest.run(config)
    thread.join()
    assert killed
    assert undisturbed.result(config) == undisturbed.result(calm)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Interrupts count, though whoever started the tests may have them ignored, as pytest-xdist does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_no_process_and_the_rerun_ends_the_same(
    calm: RunConfig, overrides: list[str], tmp_path: Path
) -> None:
    config = undisturbed.config_of(tmp_path, overrides)
    once_a_shard_is_begun(config, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ingest.run(config)
    assert nobody_downloads()
    assert not store.is_complete(config.stage_dir("ingest"))
    ingest.run(config)
    assert undisturbed.result(config) == undisturbed.result(calm)


def test_a_shard_that_can_not_be_written_fails_the_stage_with_its_error(
    calm: RunConfig, overrides: list[str], tmp_path: Path
) -> None:
    config = undisturbed.config_of(tmp_path, overrides)
    in_the_way = Path(config.stage_dir("ingest")) / "00001.tar"
    in_the_way.mkdir(parents=True)
    with pytest.raises(
        ingest.IngestError, match=r"1 shards failed 2 times, shard 1 with: IsADirectoryError.*00001\.tar"
    ):
        ingest.run(config)
    assert nobody_downloads()
    assert not store.is_complete(config.stage_dir("ingest"))
    in_the_way.rmdir()
    ingest.run(config)
    assert undisturbed.result(config) == undisturbed.result(calm)
