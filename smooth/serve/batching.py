"""Batches of what waits: whatever is alike goes together, the oldest first.

Ray Serve's own ``@serve.batch`` closes a batch when its time is over even while another one is being worked on, and
knows no groups: under steady traffic its batches are small ones that wait for each other. Here a batch is closed when
the work on it can begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Item, Result]):
    group: Hashable
    item: Item
    since: float
    """seconds of the loop's clock"""
    result: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """One batch at a time, of items of one group. To be used within one event loop."""

    def __init__(
        self, work: Callable[[list[Item]], Awaitable[Sequence[Result]]], most: int, wait_seconds: float
    ) -> None:
        """Batch calls of ``work``.

        Args:
            work: gives a result for each item, in their order; what it raises goes to all who wait for the batch.
            most: items of a batch.
            wait_seconds: that an item waits for others while nothing is worked on.
        """
        self._work, self._most, self._wait_seconds = work, most, wait_seconds
        self._waiting: list[_Waiting[Item, Result]] = []
        self._arrived = asyncio.Event()
        self._drain: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that no work has begun on."""
        return len(self._waiting)

    async def submit(self, group: Hashable, item: Item) -> Result:
        """The result of an item; whoever stops waiting takes it back unless work on it has begun."""
        loop = asyncio.get_running_loop()
        one: _Waiting[Item, Result] = _Waiting(group, item, loop.time(), loop.create_future())
        self._waiting.append(one)
        self._arrived.set()
        if self._drain is None or self._drain.done():
            self._drain = loop.create_task(self._work_off())
        try:
            return await one.result
        finally:
            if one in self._waiting:
                self._waiting.remove(one)

    async def _work_off(self) -> None:
        while self._waiting:
            if not (batch := await self._next()):
                continue
            (outcome,) = await asyncio.gather(self._work([one.item for one in batch]), return_exceptions=True)
            for index, one in enumerate(batch):
                if one.result.done():  # nobody waits for it any more
                    continue
                if isinstance(outcome, BaseException):
                    one.result.set_exception(outcome)
                else:
                    one.result.set_result(outcome[index])

    async def _next(self) -> list[_Waiting[Item, Result]]:
        """The oldest item with those of its group: as many as there may be, or as have come in time."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            oldest = self._waiting[0]
            batch = [one for one in self._waiting if one.group == oldest.group][: self._most]
            left = oldest.since + self._wait_seconds - loop.time()
            if len(batch) == self._most or left <= 0:
                self._waiting = [one for one in self._waiting if one not in batch]
                return batch
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)
        return []
