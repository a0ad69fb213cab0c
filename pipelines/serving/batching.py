"""Micro-batches: requests that come together are answered together, and none waits for others to come.

While a batch computes, requests gather; then all that wait form the next one. So a lone request is answered at once, and the
busier the service, the larger the batches. They stay so small that computing one takes about the target: a request that comes
just after a batch has begun waits no longer than that before its own begins.

Requests are taken in only while those that wait begin in time: once the oldest of a batch has waited for ``patience``, no more
are taken until the queue has become shorter. So what is taken in is answered before its deadline, however slow the machine.

Batches compute in the event loop while that takes less than handing them to a thread and back; longer ones have a thread, so
that probes and refusals are not kept waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pipelines.serving import errors
from pipelines.serving.servable import Reply, Servable

# Seconds that a batch may keep the event loop from everything else.
INLINE_SECONDS = 0.003
_SMOOTHING = 0.2


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: BaseModel
    since: float
    deadline: float
    reply: asyncio.Future[Reply]


class Batcher:
    """Answers requests with whatever model is in use when their batch begins; a batch is never split between two.

    Args:
        model: the model in use.
        queue: requests that may wait.
        batch: requests of one batch, at most.
        target: seconds that one batch should compute.
        patience: seconds that a request may wait before no more are taken in.
        observe: told the rows and the seconds of every batch.
    """

    def __init__(
        self,
        model: Callable[[], Servable],
        *,
        queue: int,
        batch: int,
        target: float,
        patience: float,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self.model, self.queue, self.batch, self.target, self.observe = model, queue, batch, target, observe
        self.patience = patience
        self._waiting: deque[_Waiting] = deque()
        self._busy = self._scheduled = False
        self._row_seconds = self._waited = 0.0
        self._answer_seconds = self._finished = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")

    @property
    def full(self) -> bool:
        """Whether another request would be turned away."""
        return len(self._waiting) >= self.queue or self._waited > self.patience

    @property
    def rate(self) -> float:
        """Answers a second while requests wait, 0 if they never did."""
        return 1 / self._answer_seconds if self._answer_seconds else 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def submit(self, request: BaseModel, seconds: float) -> asyncio.Future[Reply]:
        """A reply to be awaited.

        Args:
            request: of any operation of the model.
            seconds: from now on, within which computing has to begin.

        Raises:
            Refusal: too many are waiting.
        """
        if self.full:
            raise errors.over_capacity()
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Reply] = loop.create_future()
        now = time.monotonic()
        self._waiting.append(_Waiting(request, now, now + seconds, reply))
        if not self._busy and not self._scheduled:
            # Not at once: what else has arrived in this turn of the loop comes along.
            self._scheduled = True
            loop.call_soon(self._begin)
        return reply

    async def close(self) -> None:
        """Wait until all that wait are answered."""
        while self._waiting or self._busy:
            await asyncio.sleep(0.005)

    def _begin(self) -> None:
        self._scheduled = False
        batch = self._next()
        if not batch:
            return
        loop = asyncio.get_running_loop()
        try:
            model = self.model()
        except errors.Refusal as refusal:
            self._finish(batch, [refusal] * len(batch))
            return
        requests = [waiting.request for waiting in batch]
        if self._row_seconds * len(batch) <= INLINE_SECONDS:
            self._finish(batch, self._compute(model, requests))
            return
        self._busy = True
        done = loop.run_in_executor(self._thread, self._compute, model, requests)
        done.add_done_callback(lambda future: self._returned(batch, future))

    def _returned(self, batch: list[_Waiting], done: asyncio.Future[list[Any]]) -> None:
        self._busy = False
        self._finish(batch, done.result())

    def _next(self) -> list[_Waiting]:
        """The requests of the next batch; those that came too late are told so."""
        rows = self._rows()
        now = time.monotonic()
        batch: list[_Waiting] = []
        self._waited = now - self._waiting[0].since if self._waiting else 0.0
        while self._waiting and len(batch) < rows:
            waiting = self._waiting.popleft()
            if waiting.reply.done():  # its client has left
                continue
            if waiting.deadline < now:
                waiting.reply.set_exception(errors.too_late())
            else:
                batch.append(waiting)
        if not self._waiting:
            self._waited = 0.0
        return batch

    def _count(self, rows: int) -> None:
        """Follow the rate: where requests waited when the last batch was answered, the time since has gone into this one."""
        now = time.monotonic()
        if self._finished:
            seconds = (now - self._finished) / rows
            self._answer_seconds += (_SMOOTHING if self._answer_seconds else 1.0) * (seconds - self._answer_seconds)
        self._finished = now if self._waiting else 0.0

    def _rows(self) -> int:
        if self._row_seconds == 0.0:
            return self.batch
        return max(1, min(self.batch, int(self.target / self._row_seconds)))

    def _compute(self, model: Servable, requests: Sequence[BaseModel]) -> list[Any]:
        """Replies, or what is raised instead."""
        start, own_start = time.perf_counter(), time.thread_time()
        replies: list[Any] = []
        for first in range(0, len(requests), model.rows):
            part = requests[first : first + model.rows]
            try:
                replies += model.answer(part)
            except Exception as error:  # a bug: all of the batch have to hear of it, and the service goes on
                replies += [error] * len(part)
        # Of this thread's own time: while others have the processor, smaller batches would only take more of it.
        own = (time.thread_time() - own_start) / len(requests)
        self._row_seconds += (_SMOOTHING if self._row_seconds else 1.0) * (own - self._row_seconds)
        self.observe(len(requests), time.perf_counter() - start)
        return replies

    def _finish(self, batch: list[_Waiting], replies: Sequence[Any]) -> None:
        self._count(len(batch))
        for waiting, reply in zip(batch, replies, strict=True):
            if waiting.reply.done():
                continue
            if isinstance(reply, Exception):
                waiting.reply.set_exception(reply)
            else:
                waiting.reply.set_result(reply)
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._begin)
