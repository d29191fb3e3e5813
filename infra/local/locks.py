"""Which credential opens each service behind the guard (:mod:`infra.local.guard`), and what is sent on for it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import secrets
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

AUTHORIZATION = "Authorization"
RAY_AUTHORIZATION = "X-Ray-Authorization"
"""Ray's own, for clients behind something that uses the other; it reads this where the other is missing."""
KNOWN_SECONDS = 60.0
ASK_SECONDS = 15.0
"""For the answer to a login, its wait for a turn included."""
ASKED_AT_ONCE = 4
OF_AN_ADDRESS = 4
MOST_ASKED = 64
"""Logins that nobody had before, with those that wait for their turn: of one address, and of all."""
RETRY_SECONDS = 1

Headers = CIMultiDictProxy[str] | CIMultiDict[str]


class BusyError(Exception):
    """Too many logins wait to be looked at."""


class Lock(ABC):
    """The credential of one service."""

    title: ClassVar[str]
    schemes: ClassVar[tuple[str, ...]] = ("Basic",)

    @property
    def challenges(self) -> list[str]:
        """Values of ``WWW-Authenticate`` for who has no credential; a browser asks for the first one's."""
        return [f'{scheme} realm="{self.title}"' for scheme in self.schemes]

    @abstractmethod
    async def opens(self, request: web.BaseRequest) -> Mapping[str, str] | None:
        """The headers that hold the credential on the way to the service; None unless it holds a valid one.

        Raises:
            BusyError: it can't be looked at now.
        """


class RayLock(Lock):
    """Ray's token: as a bearer's in either header of Ray's, or as the password of any user in a browser's dialog."""

    title = "Ray"
    schemes = ("Basic", "Bearer")

    def __init__(self, token: str) -> None:
        self._token = token

    async def opens(self, request: web.BaseRequest) -> Mapping[str, str] | None:
        """Whatever form it came in, Ray is sent its own."""
        headers = request.headers
        name = AUTHORIZATION if AUTHORIZATION in headers else RAY_AUTHORIZATION
        given = credential(headers, "Bearer", name)
        if given is None and name == AUTHORIZATION and (pair := login(headers)) is not None:
            given = pair.partition(b":")[2]
        if given is None or not hmac.compare_digest(given, self._token.encode()):
            return None
        return {AUTHORIZATION: f"Bearer {self._token}"}


class PrefectLock(Lock):
    """Prefect's auth string, ``user:password``."""

    title = "Prefect"

    def __init__(self, auth: str) -> None:
        self._auth = auth

    async def opens(self, request: web.BaseRequest) -> Mapping[str, str] | None:
        """One login for all."""
        pair = login(request.headers)
        if pair is None or not hmac.compare_digest(pair, self._auth.encode()):
            return None
        return {AUTHORIZATION: request.headers[AUTHORIZATION]}


class MLflowLock(Lock):
    """The logins of MLflow's users. It keeps them itself and is asked, so that one made or changed there holds here.

    Its yes holds for a minute. While it does not answer, the administrator's login that it was started with is known,
    so that he at least is told.

    It looks at a password slowly on purpose, and anybody may send wrong ones. So a login that was right before has
    turns of its own, and those of strangers wait in a line that is bounded, and in which no address has many places.
    """

    title = "MLflow"

    def __init__(self, administrator: str, place: URL, client: aiohttp.ClientSession) -> None:
        """``administrator`` is ``user:password``, ``place`` where MLflow listens."""
        self._administrator = administrator.encode()
        self._question = place / "version"  # answers every user, and nobody else
        self._client = client
        self._key = secrets.token_bytes(32)
        # Digest of a login that was right -> until when it is not asked for, on the loop's clock.
        self._known = {self._digest(self._administrator): 0.0}
        self._asked = dict[bytes, asyncio.Task[bool | None]]()
        self._addresses = Counter[str]()
        self._turns, self._strangers_turns = asyncio.Semaphore(ASKED_AT_ONCE), asyncio.Semaphore(ASKED_AT_ONCE)

    async def opens(self, request: web.BaseRequest) -> Mapping[str, str] | None:
        """Each user's own login is sent on: his rights are MLflow's business."""
        pair = login(request.headers)
        if pair is None:
            return None
        sent = {AUTHORIZATION: request.headers[AUTHORIZATION]}
        digest = self._digest(pair)
        if self._known.get(digest, 0.0) > asyncio.get_running_loop().time():
            return sent
        if digest not in self._asked:  # a page sends many requests at once
            self._ask(digest, sent, request.remote or "")
        is_right = await asyncio.shield(self._asked[digest])  # others may wait for it when this client goes away
        if is_right is None:
            is_right = hmac.compare_digest(pair, self._administrator)
        return sent if is_right else None

    def _digest(self, pair: bytes) -> bytes:
        return hmac.digest(self._key, pair, "sha256")

    def _ask(self, digest: bytes, sent: Mapping[str, str], address: str) -> None:
        """Have MLflow asked, in a task that :meth:`opens` finds.

        Raises:
            BusyError: strangers ask for too much.
        """
        is_strange = digest not in self._known
        if is_strange and (self._addresses[address] >= OF_AN_ADDRESS or self._addresses.total() >= MOST_ASKED):
            raise BusyError
        self._addresses[address] += is_strange
        task = asyncio.create_task(self._knows(digest, sent, self._strangers_turns if is_strange else self._turns))

        def forget(_task: asyncio.Task[bool | None]) -> None:
            del self._asked[digest]
            self._addresses[address] -= is_strange
            if not self._addresses[address]:
                del self._addresses[address]

        self._asked[digest] = task
        task.add_done_callback(forget)

    async def _knows(self, digest: bytes, sent: Mapping[str, str], turns: asyncio.Semaphore) -> bool | None:
        """Whether MLflow knows the login; None where it does not answer."""
        try:
            async with asyncio.timeout(ASK_SECONDS), turns, self._client.get(self._question, headers=sent) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            return None
        if status == 200:
            self._known[digest] = asyncio.get_running_loop().time() + KNOWN_SECONDS
        elif status == 401:
            self._known.pop(digest, None)
        return status == 200


def credential(headers: Headers, scheme: str, name: str = AUTHORIZATION) -> bytes | None:
    """What follows ``scheme`` in the header, if it is there, and there once: of two a service might read the other."""
    values = headers.getall(name, [])
    if len(values) != 1:
        return None
    found, _, text = values[0].strip().partition(" ")
    return text.strip().encode(errors="surrogateescape") if found.lower() == scheme.lower() else None


def login(headers: Headers) -> bytes | None:
    """``user:password`` of basic authentication."""
    encoded = credential(headers, "Basic")
    if encoded is None:
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
