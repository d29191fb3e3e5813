"""Where a training keeps what it writes: on a local disk, which may be full, or end in the midst of a write."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, TypeVar

from pyarrow.fs import LocalFileSystem

from smooth import store

Result = TypeVar("Result")

logger = logging.getLogger(__name__)
PATIENCE_S = 1200.0  # less than the half hour after which the other ranks' collectives give up
RETRY_S = 5.0


def patiently(write: Callable[[], Result], what: str) -> Result:
    """Call ``write``, and again for as long as the disk is full: training waits for space, and loses nothing.

    Raises:
        OSError: there was no space for 20 minutes, or it is another error.
    """
    begun = time.monotonic()
    warned = False
    while True:
        try:
            result = write()
        except OSError as error:
            if error.errno not in store.FULL or time.monotonic() > begun + PATIENCE_S:
                raise
            if not warned:
                logger.warning(
                    "no space left for %s (%s): training waits for it, %.0f minutes at most. Free some; "
                    "train.best_checkpoints is how many checkpoints are kept beside the latest, storage.root where",
                    what,
                    error,
                    PATIENCE_S / 60,
                )
            warned = True
            time.sleep(RETRY_S)
        else:
            if warned:
                logger.warning("there is space again for %s, after %.0f s", what, time.monotonic() - begun)
            return result


class WholeFiles(LocalFileSystem):  # type: ignore[misc]  # pyarrow has no types
    """A local file system on which a file appears whole or not at all, as in an object store.

    Ray Train rewrites its list of checkpoints in place after each one: a kill in the midst of it, or a disk that is
    full, would leave an empty list and with it none of the checkpoints.
    """

    def __reduce__(self) -> tuple[Callable[[], WholeFiles], tuple[()]]:
        return WholeFiles, ()

    @contextmanager
    def open_output_stream(self, path: str, *_: Any, **__: Any) -> Iterator[BytesIO]:
        """A file that is written when its block ends, once there is space for it."""
        buffer = BytesIO()
        yield buffer
        patiently(lambda: store.write_bytes(path, buffer.getvalue()), path)
