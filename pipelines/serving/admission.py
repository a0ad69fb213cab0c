"""What every request passes before the service looks at it: keys, size, capacity; and what is counted of it afterwards.

Plain ASGI, as it stands in the way of every request: a request too many is turned away before its body is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import traceback
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.batching import Batcher
from pipelines.serving.errors import Refusal, over_capacity
from pipelines.serving.metrics import Metrics

log = logging.getLogger("persona.serving")

_FULL = over_capacity()
# Whoever is turned away is told so after the time that Retry-After names at the earliest: clients that do not heed it would take
# the time of those that wait, for turning a request away costs a third of answering it, nearly all of it in reading HTTP.
HOLD_SECONDS, LONGEST_HOLD_SECONDS = 1.0, 10.0
# Answers for each that is turned away, at least.
ANSWERS_A_REFUSAL = 5
BUG = Refusal(500, "bug", "the service made a mistake, which is in its log: ask again, or tell who runs it")
_NO_KEY = Refusal(
    401,
    "unauthorised",
    "an API key is needed: send it as `Authorization: Bearer KEY`",
    {"www-authenticate": "Bearer"},
)


class Gate:
    """The outermost part of the service.

    Args:
        app: the rest of it.
        batcher: whose queue bounds what is taken.
        metrics: told of every request.
        body_bytes: the largest body.
        api_keys: who may ask under the guarded paths; everybody if empty.
        guarded: beginnings of the paths that ask for a key.
        queued: paths that are turned away when the queue is full.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        batcher: Batcher,
        metrics: Metrics,
        body_bytes: int,
        api_keys: Iterable[str],
        guarded: tuple[str, ...],
        queued: frozenset[str],
    ) -> None:
        self.app, self.batcher, self.metrics, self.body_bytes = app, batcher, metrics, body_bytes
        self.guarded, self.queued = guarded, queued
        self._held = 0
        # Digests, so that keys of any length take equally long to compare.
        self._keys = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, path = time.perf_counter(), scope["path"]
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope, path)
            if refusal is None:
                await self.app(scope, _Limited(receive, self.body_bytes), counted)
            else:
                if refusal is _FULL:
                    await self._hold()
                await refuse(refusal, counted)
        except Exception as error:
            _log_bug(error, path if path in self.metrics.paths else "another path")
            if status not in (0, BUG.status):
                raise  # half an answer is out: the connection has to be closed
            if not status:
                await refuse(BUG, counted)
        finally:
            self.metrics.request(path, status, time.perf_counter() - start)

    async def _hold(self) -> None:
        self._held += 1
        try:
            await asyncio.sleep(hold_seconds(self._held, self.batcher.rate))
        finally:
            self._held -= 1

    def _refusal(self, scope: Scope, path: str) -> Refusal | None:
        headers = scope["headers"]
        if self._keys and path.startswith(self.guarded) and not self._known(headers):
            return _NO_KEY
        for name, value in headers:
            if name == b"content-length" and (not value.isdigit() or int(value[:20]) > self.body_bytes):
                return _too_large(self.body_bytes)
        if path in self.queued and scope["method"] == "POST" and self.batcher.full:
            return _FULL
        return None

    def _known(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        for name, value in headers:
            given = value[7:] if name == b"authorization" and value[:7].lower() == b"bearer " else None
            if name == b"x-api-key":
                given = value
            if given is not None:
                digest = hashlib.sha256(given).digest()
                return sum(hmac.compare_digest(digest, key) for key in self._keys) > 0
        return False


def hold_seconds(held: int, rate: float) -> float:
    """How long to wait before a request is turned away, so that few are while many are answered.

    Args:
        held: requests that wait to be turned away.
        rate: answers a second; 0 if it is not known.
    """
    wanted = ANSWERS_A_REFUSAL * held / rate if rate > 0 else 0.0
    return max(HOLD_SECONDS, min(LONGEST_HOLD_SECONDS, wanted))


class _Limited:
    """``receive`` that stops a body at the limit."""

    __slots__ = ("limit", "receive", "seen")

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.limit, self.seen = receive, limit, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.seen += len(message.get("body", b""))
        if self.seen > self.limit:
            raise _too_large(self.limit)
        return message


async def refuse(refusal: Refusal, send: Send) -> None:
    """Send a refusal as JSON."""
    for message in refusal.messages:
        await send(message)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"the body is larger than {limit} bytes: send less at once")


def _log_bug(error: Exception, path: str) -> None:
    """Where it happened, but not its message, which may repeat what a request said."""
    places = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    log.error("%s while answering %s\n  %s", type(error).__name__, path, "\n  ".join(places[-12:]))
