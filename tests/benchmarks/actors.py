"""One actor against a bare loop, and two actors against one, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.results import Result


def against_bare_loop(
    bare: Callable[[], Any], with_actors: Callable[[int], Any], *, pictures: int, rounds: int, goal: str
) -> list[Result]:
    """Medians over rounds, each of which does the same ``pictures`` in all three ways; ``goal`` is that of one actor.

    Args:
        bare: the work by itself.
        with_actors: the work by so many actors.
        pictures: of each piece of work.
        rounds: how often.
        goal: of one actor's rate against the bare loop's.
    """
    works = {"bare loop": bare, "one actor": lambda: with_actors(1), "two actors": lambda: with_actors(2)}
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            rates[name].append(pictures / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    one, two = medians["one actor"] / medians["bare loop"], medians["two actors"] / medians["one actor"]
    return [
        *(Result(name, rate, "pictures/s") for name, rate in medians.items()),
        Result("one actor / bare loop", one, "", goal),
        Result("two actors / one", two, "", ">= 1.6"),
    ]
