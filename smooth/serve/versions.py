"""The version of a registered model that is served, and its successor when the alias moves."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from smooth import registry, store
from smooth.config import REGISTERED, ModelConfig
from smooth.edit.model import EditModel, open_model
from smooth.serve.order import Order
from smooth.serve.paint import paint
from smooth.tracking import redact

RETRY_SECONDS = 60.0  # until a version that could not be loaded is tried again

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A loaded version; it stays in memory as long as a request of its own is under way."""

    uri: str
    """``models:/NAME/VERSION``"""
    edited: EditModel
    pipeline: Any

    @property
    def name(self) -> str:
        """``NAME/VERSION``."""
        return self.uri.removeprefix(REGISTERED)


class Versions:
    """What is served under a name of the registry. One thread follows, any may read."""

    def __init__(self, asked: str, scratch: str) -> None:
        """Load the version that ``models:/NAME@ALIAS`` (or ``/NAME/VERSION``) means now; copies go below ``scratch``.

        Raises:
            ValueError: there is none, or it can't be read.
        """
        self._asked, self._scratch = asked, scratch
        self._failed: tuple[str, float] | None = None
        self.problem: str | None = None
        """why what is served may not be what the registry says"""
        self.current = self._load(registry.resolve(asked))

    def follow(self) -> None:
        """Look where the alias points, and serve that from now on, if it can be loaded."""
        try:
            uri = registry.resolve(self._asked)
        except store.ArtifactError as error:
            self._tell(f"{error}; going on with {self.current.name}")
            return
        if uri == self.current.uri:
            self._failed = self.problem = None
            return
        if self._failed is not None and self._failed[0] == uri and time.monotonic() < self._failed[1]:
            return
        try:
            self.current = self._load(uri)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a new version, the old one goes on
            self._failed = uri, time.monotonic() + RETRY_SECONDS
            self._tell(redact(f"{uri} can't be served: {error or type(error).__name__}; going on with "
                              f"{self.current.name}"))  # fmt: skip
        else:
            self._failed = self.problem = None
            logger.warning("serving %s", self.current.name)

    def _load(self, uri: str) -> Version:
        edited = open_model(uri, ModelConfig(), scratch=self._scratch)
        version = Version(uri, edited, edited.at())
        paint(version.pipeline, [Order(prompt="a red heart", steps=1)])  # what can't paint does not take over
        return version

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            logger.warning(problem)
        self.problem = problem
