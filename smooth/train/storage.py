"""Writing to a disk that may be full."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

logger = logging.getLogger(__name__)
PATIENCE_S = 1200.0  # less than the half hour after which the other ranks' collectives give up
RETRY_S = 5.0
FULL = (errno.ENOSPC, errno.EDQUOT)


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
            if error.errno not in FULL or time.monotonic() > begun + PATIENCE_S:
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
