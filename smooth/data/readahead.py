"""Items made in background threads while those before them are worked on: in order, and boundedly many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

DEPTH = 2  # items ahead: one hides the time that an item takes, the second the differences between them


def ahead(
    threads: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Map in threads, in order, at most ``depth`` results ahead of the one that is asked for."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class ReadAhead(Generic[Result]):
    """``function`` of each item, computed ``depth`` items ahead by one thread that ends with the block.

    What the function raises is raised where its item's result is asked for.
    """

    def __init__(self, function: Callable[[Item], Result], items: Iterable[Item], depth: int = DEPTH) -> None:
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._results = ahead(self._thread, function, items, depth)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result:
        return next(self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
