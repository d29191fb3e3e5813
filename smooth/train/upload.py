"""Checkpoints on their way through Ray Train: whole before the next one begins, the superfluous emptied."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import ray.train

from smooth.config import TrainConfig
from smooth.train.checkpoint import TENSORS
from smooth.train.retention import Kept, superfluous
from smooth.train.storage import patiently


def upload(write: Callable[[Path], None], step: int, loss: float, *, config: TrainConfig) -> None:
    """Let rank 0 ``write`` the checkpoint of ``step`` into a local folder, and Ray upload it. Every rank calls it.

    Ray knows a checkpoint when it is whole. With ``train.async_checkpoints`` training goes on meanwhile, until the next
    checkpoint: a slow upload, or one that waits for space, costs an interruption less than a second interval.
    """
    whole = _whole()
    folder = Path(tempfile.mkdtemp(prefix="smooth-checkpoint-"))
    with ExitStack() as failed:
        failed.callback(shutil.rmtree, folder, ignore_errors=True)  # on a full disk it must not stay
        write(folder)
        wrote = any(folder.iterdir())
        if wrote:
            failed.pop_all()
    if wrote:
        _empty(whole, config)
    ray.train.report(
        {"step": step, "loss": loss},
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)) if wrote else None,
        checkpoint_dir_name=f"step-{step:06d}",
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,  # removes the folder afterwards
        checkpoint_upload_fn=_persist,
    )
    if not config.async_checkpoints:
        _whole()


def _whole() -> list[ray.train.ReportedCheckpoint]:
    """All checkpoints, when the latest is whole and known to Ray."""
    whole: list[ray.train.ReportedCheckpoint]
    whole = ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
    return whole


def _persist(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Ray's own upload, which a full disk makes wait instead of failing."""
    storage = ray.train.get_context().get_storage()
    return patiently(lambda: storage.persist_current_checkpoint(checkpoint, name), f"the checkpoint {name}")


def _empty(whole: list[ray.train.ReportedCheckpoint], config: TrainConfig) -> None:
    """Delete the tensors of the checkpoints that are not to be kept.

    Ray keeps the best or the last, not both, so it is told to keep all. It refuses to go on where a folder is gone:
    what is small stays, as the record of the checkpoint.
    """
    places = {one.checkpoint.path: one.checkpoint.filesystem for one in whole}
    known = [Kept(one.checkpoint.path, one.metrics["step"], one.metrics["loss"]) for one in whole]
    for path in superfluous(known, best=config.best_checkpoints, last=config.last_checkpoints):
        with suppress(FileNotFoundError):  # emptied before
            places[path].delete_file(f"{path}/{TENSORS}")
