"""Notes for a server that may be away: sent from a thread of their own, kept in a folder while they can't be sent.

Who writes them never waits for the server, and what a process leaves unsent is sent by the next one that looks there.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from smooth import store

logger = logging.getLogger(__name__)
FOLDER = "unsent"
SEND_SECONDS = 5.0
BATCH = 500
HELD = 20_000  # notes in memory, some 10 MB; what is more waits in the folder
RETRY_SECONDS = 5.0  # beside the sender's own retries
PATIENCE_SECONDS = 5.0  # that a server which may be away is waited for

Note = dict[str, Any]
"""Plain JSON."""


class AwayError(ConnectionError):
    """The server does not answer; the same again may succeed."""


class Outbox:
    """Hands notes to ``send``, in order and up to `BATCH` at once, and again while it raises `AwayError`.

    A note may be sent twice where a process was killed, or the folder written, in the midst of sending.
    Any other error of ``send`` is raised by the next :meth:`put` or :meth:`flush`.
    """

    def __init__(self, send: Callable[[list[Note]], None], folder: str | None = None) -> None:
        """``folder``: of any fsspec path, for what can't be sent; without one it stays in memory."""
        self._send = send
        self._folder = "" if folder is None else store.join(folder, FOLDER)
        self._changed = threading.Condition()
        self._waiting: list[Note] = []
        self._sending: list[Note] = []
        self._files: list[str] = []  # kept, and not yet sent
        self._since = time.monotonic()  # of the oldest attempt that has had no answer
        self._sent_at = time.monotonic()
        self._hurry = self._closed = False
        self._away: AwayError | None = None
        self._refused: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, notes: list[Note]) -> None:
        """Take notes; returns at once."""
        with self._changed:
            self._raise_refused()
            self._waiting += notes
            if self._folder and len(self._waiting) > HELD:
                self._keep()
            if len(self._waiting) >= BATCH:
                self._changed.notify_all()

    def look(self) -> None:
        """Send, too, what others have left in the folder."""
        if not self._folder:
            return
        found = sorted(store.names(self._folder)) if store.exists(self._folder) else []
        with self._changed:
            self._files += [name for name in found if name not in self._files]

    def flush(self, patience_s: float = PATIENCE_SECONDS) -> int:
        """Wait until all is sent; return how many notes, or files of them, are not and lie in the folder.

        It waits ``patience_s`` from when the server was first away; without a folder until ``send`` has failed once.

        Raises:
            AwayError: there is no folder, and the server does not answer.
        """
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            if not self._folder:
                self._away = None  # one that was before says nothing of now
            if not self._sending and self._away is None:
                self._since = time.monotonic()
            while self._left() and self._refused is None:
                if not self._folder and self._away is not None:
                    raise self._away
                left_s = self._since + patience_s - time.monotonic()
                if self._folder and left_s <= 0:
                    break
                self._changed.wait(left_s if self._folder else None)
            self._hurry = False
            self._raise_refused()
            left = self._left()
            if self._waiting or self._sending:
                self._keep()
            return left

    def close(self) -> None:
        """Let the thread end; it sends no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _left(self) -> int:
        return len(self._waiting) + len(self._sending) + len(self._files)

    def _raise_refused(self) -> None:
        if self._refused is not None:
            raise self._refused

    def _keep(self) -> None:
        """Write all that is in memory into the folder."""
        notes, self._waiting, self._sending = self._sending + self._waiting, [], []
        name = f"{time.time_ns()}-{secrets.token_hex(4)}.json"
        store.write_json(store.join(self._folder, name), notes)
        self._files.append(name)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            notes, file = batch
            try:
                notes = notes if file is None else self._read(file)
                for start in range(0, len(notes), BATCH):
                    self._send(notes[start : start + BATCH])
                if file is not None:
                    store.remove(store.join(self._folder, file))
            except AwayError as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001 - raised where the notes come from
                with self._changed:
                    self._refused = error
                    self._changed.notify_all()
                return
            else:
                self._succeeded(file)

    def _next(self) -> tuple[list[Note], str | None] | None:
        """The next notes to send, and the file that holds them; None at the end."""
        with self._changed:
            while not self._closed:
                left_s = self._sent_at + SEND_SECONDS - time.monotonic()
                due = self._hurry or left_s <= 0 or len(self._waiting) >= BATCH
                if due and (self._waiting or self._files):
                    self._since = time.monotonic() if self._away is None else self._since
                    if not self._waiting:
                        return [], self._files[0]
                    self._sending, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                    return self._sending, None
                self._changed.wait(left_s if left_s > 0 else SEND_SECONDS)
            return None

    def _read(self, file: str) -> list[Note]:
        notes: list[Note] = json.loads(store.read_bytes(store.join(self._folder, file)))
        return notes

    def _succeeded(self, file: str | None) -> None:
        with self._changed:
            if self._away is not None:
                logger.warning("the server answers again: what it missed is being sent")
            self._away, self._sending, self._sent_at = None, [], time.monotonic()
            self._since = self._sent_at
            if file is not None:
                self._files.remove(file)
            self._changed.notify_all()

    def _failed(self, error: AwayError) -> None:
        with self._changed:
            if self._away is None:
                logger.warning("%s; work goes on, and what it says is kept and sent later", error)
            self._away = error
            self._waiting, self._sending = self._sending + self._waiting, []
            self._changed.notify_all()
            if not self._closed:
                self._changed.wait(RETRY_SECONDS)
