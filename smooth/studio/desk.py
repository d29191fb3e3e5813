"""What the tabs share: models, jobs, uploads, and files for the browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from smooth.cli import is_ours
from smooth.edit import Progress
from smooth.edit.invert import Cache
from smooth.edit.media import Picture, read_picture
from smooth.edit.model import EditModel
from smooth.studio.jobs import Cancelled, Jobs
from smooth.studio.models import Models

MOST_INVERSIONS = 50  # kept for the next time


@dataclass(frozen=True)
class Job:
    """Work under way."""

    _cancelled: threading.Event
    _bar: Any

    def telling(self, what: str) -> Progress:
        """A progress that the page shows, and that ends the work when it is called off."""

        def tell(done: int, total: int) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            self._bar((done, total), desc=what, unit="steps")

        return tell


class Desk:
    """One for the server."""

    def __init__(self, models: Models, scratch: str) -> None:
        """Keep inversions below ``scratch``, a folder of this machine."""
        self.models = models
        self.jobs = Jobs()
        self._inversions = Path(scratch, "inversions")

    @contextmanager
    def job(self, request: gr.Request, bar: Any) -> Iterator[Job]:
        """Work for a session; what the person can cure is told in the page, the rest goes to the log.

        Raises:
            gr.Error: with the text of our own ValueError.
        """
        try:
            yield Job(self.jobs.start(str(request.session_hash)), bar)
        except Cancelled:
            raise gr.Error("It was called off.", title="Cancelled", print_exception=False) from None
        except ValueError as error:
            if not is_ours(error):
                raise
            raise told(error) from None

    def cancel(self, request: gr.Request) -> None:
        """Call the session's job off."""
        self.jobs.cancel(str(request.session_hash))

    def cache(self, edited: EditModel, level: float) -> Cache:
        """Where inversions are kept while the server runs; the oldest make room."""
        self._inversions.mkdir(exist_ok=True)
        kept = sorted(self._inversions.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[:-MOST_INVERSIONS]:
            path.unlink(missing_ok=True)
        return Cache(str(self._inversions), edited.identity_at(level))


def told(error: ValueError) -> gr.Error:
    """The message of a mistake that a person can cure, for the page."""
    return gr.Error(_escaped(str(error)), title="That doesn't work", print_exception=False)


def picture_of(upload: str | None, size: int, what: str = "a picture") -> Picture:
    """(size, size, 3) uint8 of an uploaded file.

    Raises:
        ValueError: none uploaded, or no picture within the limits.
    """
    if not upload:
        raise ValueError(f"upload {what} first")
    return read_picture(Path(upload).read_bytes(), size, name_of(upload))


def name_of(upload: str) -> str:
    """The file's own name."""
    return Path(upload).name


def served(data: bytes, name: str) -> str:
    """The path of a file that the page may show."""
    return str(save_bytes_to_cache(data, name, get_upload_folder()))


def whole(name: str, value: float | None) -> int:
    """The number of a field.

    Raises:
        ValueError: the field is empty.
    """
    if value is None:
        raise ValueError(f"{name} is empty; give a number")
    return int(value)


def _escaped(text: str) -> str:
    """A message is shown as HTML, and may hold a stranger's file name."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
