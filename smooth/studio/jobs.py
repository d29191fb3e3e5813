"""Work that a person asked for and may call off: at its next step it ends."""

from __future__ import annotations

import threading


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """The person doesn't want it any more."""


class Jobs:
    """The latest job of each session."""

    def __init__(self) -> None:
        self._cancelled: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def start(self, session: str) -> threading.Event:
        """What is set when the job that begins is called off; an earlier one of the session is."""
        with self._lock:
            if before := self._cancelled.get(session):
                before.set()
            self._cancelled[session] = threading.Event()
            return self._cancelled[session]

    def cancel(self, session: str) -> None:
        """End the session's job at its next step, if there is one."""
        with self._lock:
            if running := self._cancelled.pop(session, None):
                running.set()
