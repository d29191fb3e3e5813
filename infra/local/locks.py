"""Which credential opens each service behind the guard (:mod:`infra.local.guard`), and what is sent on for it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

AUTHORIZATION = "Authorization"
RAY_AUTHORIZATION = "X-Ray-Authorization"
"""Ray's own, for clients behind something that uses the other; it reads this where the other is missing."""
KNOWN_SECONDS = 60.0
ASK_SECONDS = 15.0
ASKED_AT_ONCE = 4

Headers = CIMultiDictProxy[str] | CIMultiDict[str]


class Lock(ABC):
    """The credential of one service."""

    title: ClassVar[str]
    schemes: ClassVar[tuple[str, ...]] = ("Basic",)

    @property
    def challenges(self) -> list[str]:
        """Values of ``WWW-Authenticate`` for who has no credential; a browser asks for the first one's."""
        return [f'{scheme} realm="{self.title}"' for scheme in self.schemes]

    @abstractmethod
    async def opens(self, headers: Headers) -> Mapping[str, str] | None:
        """The headers that hold the credential on the way to the service; None unless ``headers`` hold a valid one."""


class RayLock(Lock):
    """Ray's token: as a bearer's in either header of Ray's, or as the password of any user in a browser's dialog."""

    title = "Ray"
    schemes = ("Basic", "Bearer")

    def __init__(self, token: str) -> None:
        self._token = token

    async def opens(self, headers: Headers) -> Mapping[str, str] | None:
        """Whatever form it came in, Ray is sent its own."""
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

    async def opens(self, headers: Headers) -> Mapping[str, str] | None:
        """One login for all."""
        pair = login(headers)
        if pair is None or not hmac.compare_digest(pair, self._auth.encode()):
            return None
        return {AUTHORIZATION: headers[AUTHORIZATION]}


class MLflowLock(Lock):
    """The logins of MLflow's users. It keeps them itself and is asked, so that one made or changed there holds here.

    Its yes holds for a minute. While it does not answer, the administrator's login that it was started with is known,
    so that he at least is told.
    """

    title = "MLflow"

    def __init__(self, administrator: str, place: URL, client: aiohttp.ClientSession) -> None:
        """``administrator`` is ``user:password``, ``place`` where MLflow listens."""
        self._administrator = administrator
        self._question = place / "version"  # answers every user, and nobody else
        self._client = client
        self._key = secrets.token_bytes(32)
        self._known = dict[bytes, float]()  # digest of a login -> until when, on the loop's clock
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)  # MLflow's look at a password is slow on purpose

    async def opens(self, headers: Headers) -> Mapping[str, str] | None:
        """Each user's own login is sent on: his rights are MLflow's business."""
        pair = login(headers)
        if pair is None:
            return None
        sent = {AUTHORIZATION: headers[AUTHORIZATION]}
        digest, now = hmac.digest(self._key, pair, "sha256"), asyncio.get_running_loop().time()
        if self._known.get(digest, now) > now:
            return sent
        try:
            if not await self._knows(sent):
                return None
        except (aiohttp.ClientError, TimeoutError):
            return sent if hmac.compare_digest(pair, self._administrator.encode()) else None
        self._known = {known: until for known, until in self._known.items() if until > now}
        self._known[digest] = now + KNOWN_SECONDS
        return sent

    async def _knows(self, sent: Mapping[str, str]) -> bool:
        wait = aiohttp.ClientTimeout(total=ASK_SECONDS)
        async with self._asking, self._client.get(self._question, headers=sent, timeout=wait) as answer:
            return answer.status == 200


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
