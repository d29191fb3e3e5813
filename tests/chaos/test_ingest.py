"""Ten kills of ingest at random moments, drivers and workers alike: ``python -m pytest tests/chaos`` (minutes)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from tests import undisturbed

KILLS = 10
pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(3600)]
SEED = int(os.environ.get("SMOOTH_CHAOS_SEED", "0"))


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with undisturbed.listed(tmp_path_factory.mktemp("list"), timeout_s=10) as overrides:
        yield overrides


def start(root: Path, overrides: list[str], log: Path) -> psutil.Popen:
    """The stage in a process of its own on this test's Ray, as a Ray job runs it."""
    options = [part for change in [f"storage.root={root}", *overrides] for part in ("-o", change)]
    with log.open("a") as output:
        return psutil.Popen(
            [sys.executable, "-m", "smooth", "stage", "ingest", *options],
            stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        )  # fmt: skip


def kill_driver(driver: psutil.Popen) -> None:
    """Kill the driver alone; Ray has to end what it had at work."""
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 60
    while undisturbed.downloading():
        assert time.monotonic() < deadline, f"{undisturbed.downloading()} outlived their driver"
        time.sleep(0.2)


def run_through(
    random_: random.Random, root: Path, overrides: list[str], kills: int, longest_s: float, log: Path
) -> list[str]:
    """Run ingest to its end with up to ``kills`` kills on the way; return who was killed."""
    driver, victims = start(root, overrides, log), list[str]()
    try:
        while len(victims) < kills:
            try:
                code = driver.wait(random_.uniform(0, longest_s))
            except psutil.TimeoutExpired:
                workers = undisturbed.downloading()
            else:
                assert code == 0, log.read_text()[-3000:]
                return victims
            if workers and random_.random() < 0.6:
                random_.choice(workers).kill()
                victims.append("worker")
            else:
                kill_driver(driver)
                victims.append("driver")
                driver = start(root, overrides, log)
        assert driver.wait(600) == 0, log.read_text()[-3000:]
    finally:
        if driver.is_running():
            driver.kill()
    return victims


def test_ten_kills_end_in_the_undisturbed_result(overrides: list[str], tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    begun = time.monotonic()
    run_through(random_, tmp_path / "calm", overrides, 0, 0, tmp_path / "log")
    longest_s = time.monotonic() - begun  # so that kills meet each part of a run
    expected = undisturbed.result(undisturbed.config_of(tmp_path / "calm", overrides))
    victims, runs = list[str](), 0
    while len(victims) < KILLS:
        root = tmp_path / f"run-{runs}"
        victims += run_through(random_, root, overrides, KILLS - len(victims), longest_s, tmp_path / "log")
        assert undisturbed.result(undisturbed.config_of(root, overrides)) == expected
        runs += 1
    print(f"seed {SEED}: {', '.join(victims)} in {runs} runs, {time.monotonic() - begun:.0f} s")
