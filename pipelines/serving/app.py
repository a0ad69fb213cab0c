"""The routes of a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version as installed

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.serving import errors, listing
from pipelines.serving.admission import BUG, Gate, refuse
from pipelines.serving.batching import Batcher
from pipelines.serving.bodies import LONGEST_MS, body_of, field_names, parse, to_bytes, whole
from pipelines.serving.config import ServingConfig
from pipelines.serving.errors import Problem, Refusal
from pipelines.serving.metrics import Metrics
from pipelines.serving.models import Models
from pipelines.serving.recsys.scoring import INVOCATIONS
from pipelines.serving.servable import BINARY, BINARY_SCHEMA, Operation, Reply, Task
from pipelines.serving.sources import Source

DEADLINE = "x-deadline-ms"
# Headers by names in lower case, and a body -> those of the answer.
Endpoint = Callable[[Mapping[str, str], bytes], Awaitable[tuple[dict[str, str], bytes]]]
_REFUSALS = (400, 401, 413, 415, 422, 429, 500, 503)


class Service:
    """A model in use, its queue, and the ASGI application in front of them.

    Args:
        task: what kind of bundles are served.
        source: where their versions come from.
        config: settings.

    Attributes:
        app: to be run by an ASGI server; it loads the model at start, and answers what waits before it ends.
        api: the routes without the gate, for their documentation.
    """

    def __init__(self, task: Task, source: Source, config: ServingConfig) -> None:
        self.task, self.config = task, config
        self.draining = False
        self._endpoints: dict[str, Endpoint] = {}
        self.api = self._routes()
        self.metrics = Metrics(frozenset(getattr(route, "path", "") for route in self.api.routes))
        self.models = Models(task, source, self.metrics.version)
        self.batcher = Batcher(
            self.models.current,
            queue=config.queue,
            batch=config.batch,
            target=config.target_ms / 1000,
            patience=config.deadline_ms / 2000,
            observe=self.metrics.batch,
        )
        self.metrics.watch(lambda: self.batcher.waiting, lambda: self.ready)
        self.app = Gate(
            _Direct(self.api, self._endpoints),
            batcher=self.batcher,
            metrics=self.metrics,
            body_bytes=config.body_bytes or task.body_bytes,
            api_keys=config.api_keys,
            guarded=("/v1/", "/invocations"),
            queued=frozenset([*self._endpoints, INVOCATIONS]),
        )

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.models.loaded and not self.draining

    async def ask(self, request: BaseModel, seconds: float) -> Reply:
        """The reply to one request, by way of the queue.

        Raises:
            Refusal: it cannot be answered, or not within so many ``seconds``.
        """
        return await self.batcher.submit(request, seconds)

    def seconds(self, headers: Mapping[str, str]) -> float:
        """How long a request may wait.

        Raises:
            Refusal: its header says something else than milliseconds.
        """
        given = headers.get(DEADLINE)
        if given is None:
            return self.config.deadline_ms / 1000
        if not (given.isascii() and given.isdecimal() and len(given) <= 6 and 1 <= int(given) <= LONGEST_MS):
            raise Refusal(422, "invalid", f"X-Deadline-Ms has to be a whole number from 1 to {LONGEST_MS}")
        return int(given) / 1000

    def _routes(self) -> FastAPI:
        api = FastAPI(
            title="Persona",
            version=installed("persona"),
            summary="Personalised answers, and edits for devices.",
            lifespan=self._lifespan,
            docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
            redoc_url=None,
        )
        # The busiest first: routes are tried in their order.
        for operation in self.task.operations:
            self._add(api, operation)
        listing.add(api, self)
        self.task.extend(api, self)
        api.add_exception_handler(Refusal, _refused)
        api.add_exception_handler(Exception, _failed)
        api.add_exception_handler(HTTPException, _http_refused)
        api.add_exception_handler(RequestValidationError, _parameters_refused)
        return api

    def _add(self, api: FastAPI, operation: Operation) -> None:
        names = sorted(field_names(operation.request))

        async def endpoint(headers: Mapping[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
            seconds = self.seconds(headers)
            reply = await self.ask(parse(headers, body, operation.request, names), seconds)
            if operation.binary and BINARY in headers.get("accept", ""):
                told = {key: reply.content[key] for key in ("level", "prototype", "host", "bank")}
                versions = {f"x-persona-{key}": "" if value is None else str(value) for key, value in told.items()}
                return {"content-type": BINARY, **versions}, reply.message or b""
            return {"content-type": "application/json"}, to_bytes(reply.content)

        async def documented(request: Request) -> Response:
            answered, content = await endpoint(request.headers, await request.body())
            return Response(content, headers=answered)

        self._endpoints[operation.path] = endpoint
        content = {BINARY: {"schema": BINARY_SCHEMA}} if operation.binary else {}
        statuses = (*_REFUSALS, 404, *((409,) if operation.conflicts else ()))
        api.add_api_route(
            operation.path,
            documented,
            methods=["POST"],
            summary=operation.summary,
            description=operation.description,
            operation_id=operation.path.rpartition("/")[2],
            response_model=None,
            responses={200: {"model": operation.response, "content": content}, **errors.responses(*statuses)},
            openapi_extra=body_of(operation.request, operation.examples),
        )

    @asynccontextmanager
    async def _lifespan(self, api: FastAPI) -> AsyncIterator[None]:
        """Load the model before the first request, follow its source, and answer what waits at the end."""
        loop = asyncio.get_running_loop()
        if not self.models.loaded:
            await loop.run_in_executor(None, self.models.refresh)
        following = loop.create_task(self.models.follow(self.config.poll_seconds))
        try:
            yield
        finally:
            following.cancel()
            await self.batcher.close()


class _Direct:
    """Takes the operations of a task past FastAPI's middleware and routing, which take longer than the answer."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self.app, self.endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self.endpoints.get(scope.get("path", ""))
        if endpoint is None or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            answered, content = await endpoint(headers, await whole(receive))
        except Refusal as refusal:
            await refuse(refusal, send)
            return
        listed = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answered.items()]
        listed.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": 200, "headers": listed})
        await send({"type": "http.response.body", "body": content})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return Response(error.body(), error.status, error.headers, "application/json")


async def _failed(request: Request, error: Exception) -> Response:
    """The gate logs it."""
    return await _refused(request, BUG)


async def _http_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = {404: "there is nothing at this address: see /docs", 405: "this address takes other methods: see /docs"}
    told = Problem(error=sentence.get(error.status_code, "this request cannot be answered"), kind="http")
    return Response(told.model_dump_json(), error.status_code, error.headers, "application/json")


async def _parameters_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    names = ", ".join(str(found["loc"][-1]) for found in error.errors())
    told = Problem(error=f"{names}: the value does not fit, see /docs", kind="invalid")
    return Response(told.model_dump_json(), 422, media_type="application/json")
