"""Processes that reduce over gloo, without Ray."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import start_processes


def start(ranks: int, function: Callable[..., None], *args: Any) -> None:
    """Call ``function(*args)`` in ``ranks`` processes of one thread each, and wait for them.

    They meet at a file: a port that was free when it was looked for may be somebody else's by the time it is used.
    And they are new processes, not forks: one of a process with threads may stop anywhere.

    Raises:
        torch.multiprocessing.ProcessRaisedException: One raised; with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (ranks, f"file://{folder}/ranks", function, args)
        start_processes(_join, arguments, nprocs=ranks, start_method="spawn")


def _join(rank: int, ranks: int, place: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)})
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks)
    function(*args)
    dist.destroy_process_group()
