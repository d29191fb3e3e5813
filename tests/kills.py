"""A stage and kills at random moments, of its driver and of its workers: what the chaos tests have in common."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

KILLS = 10
# At one driver: a stage takes a shard that has ended three workers for the cause of it, and says so.
WORKERS = 2
SEED = int(os.environ.get("SMOOTH_CHAOS_SEED", "0"))


@dataclass(frozen=True)
class Stage:
    """A stage that can be run again and again on this test's Ray, as Ray jobs run it."""

    name: str
    log: Path
    at_work: Callable[[], list[psutil.Process]]
    """the workers that hold a shard now"""

    def start(self, overrides: list[str]) -> psutil.Popen:
        options = [part for change in overrides for part in ("-o", change)]
        with self.log.open("a") as output:
            return psutil.Popen(
                [sys.executable, "-m", "smooth", "stage", self.name, *options],
                stdout=output, stderr=subprocess.STDOUT,
                env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            )  # fmt: skip

    def kill(self, driver: psutil.Popen) -> None:
        """Kill the driver alone; Ray has to end what it had at work."""
        driver.kill()
        driver.wait()
        while self.at_work():  # for ever means pytest's own timeout, as below: a busy machine has stalled for minutes
            time.sleep(0.2)

    def run(self, overrides: list[str]) -> float:
        """Run it to its end undisturbed; return its seconds."""
        begun = time.monotonic()
        self.run_through(random.Random(), overrides, 0, 0)
        return time.monotonic() - begun

    def run_through(self, draws: random.Random, overrides: list[str], kills: int, longest_s: float) -> list[str]:
        """Run it to its end with up to ``kills`` kills, each up to ``longest_s`` after the last; return the victims."""
        victims = list[str]()
        workers = 0
        driver = self.start(overrides)
        try:
            while len(victims) < kills:
                try:
                    code = driver.wait(draws.uniform(0, longest_s))
                except psutil.TimeoutExpired:
                    at_work = self.at_work()
                else:
                    assert code == 0, self.end_of_log()
                    return victims
                if at_work and workers < WORKERS and draws.random() < 0.7:
                    draws.choice(at_work).kill()
                    workers += 1
                    victims.append("worker")
                else:
                    self.kill(driver)
                    workers = 0
                    victims.append("driver" if at_work else "driver before or after its work")
                    driver = self.start(overrides)
            assert driver.wait() == 0, self.end_of_log()
        finally:
            if driver.is_running():
                driver.kill()
                driver.wait()
        return victims

    def end_of_log(self) -> str:
        return self.log.read_text()[-4000:]


def survive(stage: Stage, roots: Callable[[], list[str]], result: Callable[[list[str]], object]) -> None:
    """Assert that runs with `KILLS` kills end in the result of one without.

    ``roots`` gives the overrides of a new run of the same; ``result`` what became of it.
    """
    draws, begun, runs, victims = random.Random(SEED), time.monotonic(), 0, list[str]()
    calm = roots()
    longest_s = stage.run(calm)  # so that kills meet each part of a run, however fast the machine
    expected = result(calm)
    while len(victims) < KILLS:
        overrides = roots()
        victims += stage.run_through(draws, overrides, KILLS - len(victims), longest_s)
        assert result(overrides) == expected
        runs += 1
    assert {"worker", "driver"} <= set(victims)  # not one of them in the midst of work would prove little
    print(f"\n{stage.name}, seed {SEED}: {', '.join(victims)} in {runs} runs, {time.monotonic() - begun:.0f} s")
