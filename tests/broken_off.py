"""A promotion or rollback in a process that kills itself after so many writes to MLflow's registry."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient

from smooth.promotion import moves
from smooth.promotion.registry import Registry

WRITES = (
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)
MOVES: dict[str, tuple[str, ...]] = {
    "promotion": ("gate", "history", "production", "head", "previous"),
    "rollback": ("history", "production", "head", "previous"),
}
"""what is written, in order"""


def break_off(kind: str, model: str, version: str, after: int) -> int:
    """Begin a move and be killed right after so many writes; return the exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # one import of MLflow for all
    child = context.Process(target=_move, args=(kind, model, version, after, os.environ["MLFLOW_TRACKING_URI"]))
    child.start()
    child.join()
    code = child.exitcode
    child.close()
    assert code is not None
    return code


def _move(kind: str, model: str, version: str, after: int, uri: str) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    done = 0

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(*args, **kwargs)
            done += 1
            return result

        return call

    for name in WRITES:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
    registry = Registry(model)
    if kind == "promotion":
        moves.promote(registry, registry.books(), version, gate="| |", who="ana", why="new", approved="")
    else:
        moves.roll_back(registry, registry.books(), version, who="ana", why="back")
    if done == after:  # nothing more to write
        os.kill(os.getpid(), signal.SIGKILL)
