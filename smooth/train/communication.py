"""How long collectives take, by hooks that torch's process groups call around each one, whoever issues it."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from torch import distributed as dist

if TYPE_CHECKING:
    from torch._C._distributed_c10d import PostHookArgs, PreHookArgs

HOOK = 7_000  # our number among a group's hooks


class Collectives:
    """The spans in which this process has collectives under way on the CPU: DDP's, DeepSpeed's and the step's own.

    A span ends when the result is there, so it holds the waiting for slower ranks. Gloo's reduce-scatter, which
    ZeRO-3 lives on, does not tell when that is. On a GPU the host only enqueues collectives; there is nothing
    to tell by its clock.
    """

    def __init__(self) -> None:
        """Listen to all groups that there are by now."""
        self._lock = threading.Lock()  # results come on the backend's threads
        self._started: dict[tuple[int, int], float] = {}
        self._spans: list[tuple[float, float]] = []
        self._complete = True  # no collective kept its end to itself
        for number, group in enumerate(dist.distributed_c10d._world.pg_map if dist.is_initialized() else ()):
            group.register_pre_hook(HOOK, partial(self._issue, number))
            group.register_post_hook(HOOK, partial(self._issued, number))

    def _issue(self, group: int, call: PreHookArgs) -> None:
        with self._lock:
            self._started[group, call.op_id] = time.monotonic()

    def _issued(self, group: int, call: PostHookArgs) -> None:
        def ended(_: object = None) -> None:
            with self._lock:
                self._spans.append((self._started.pop((group, call_id)), time.monotonic()))

        call_id = call.op_id
        if call.work is None:
            ended()
            return
        try:
            call.work.get_future().add_done_callback(ended)
        except RuntimeError:  # not implemented by this backend for this collective
            with self._lock:
                self._complete = False
                del self._started[group, call_id]

    def take(self, since: float) -> float | None:
        """Seconds after ``since`` (``time.monotonic``) with a collective under way, and a fresh start.

        None where some can't be told: half the truth would look like little communication.
        """
        with self._lock:
            spans, self._spans = self._spans, []
        return covered(spans, since) if self._complete else None


def covered(spans: list[tuple[float, float]], since: float) -> float:
    """Length of the union of ``(start, end)`` spans after ``since``."""
    total, reached = 0.0, since
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
