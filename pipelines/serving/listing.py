"""Routes that every service has beside the operations of its task: probes, counts, prototypes."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi import Path as FromPath
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from pipelines.serving import errors
from pipelines.serving.errors import Refusal
from pipelines.serving.servable import BINARY, BINARY_SCHEMA, ModelVersion, Service


class State(BaseModel):
    """Whether the service is well."""

    status: str
    model: ModelVersion | None = None
    host: str = ""
    bank: str = ""
    refused: str = Field(default="", description="Why the newest version is not in use, empty if it is.")


class Prototype(BaseModel):
    """One prototype."""

    index: int
    members: float = Field(description="Weight of the contexts that made it.")
    norm: float = Field(description="Frobenius norm of its bounded edit.")
    origin: int | None = Field(description="The parent's prototype that it continues.")


class Bank(BaseModel):
    """A version of the prototype bank."""

    model: ModelVersion
    host: str
    bank: str
    version: str
    parent: str = Field(description="The version it was made from, empty for the first.")
    editor: str
    prototypes: list[Prototype]
    directions: list[float] = Field(description="Share of the remaining edits' energy along each direction.")
    metadata: dict[str, Any]


def add(api: FastAPI, service: Service) -> None:
    """Add the routes to ``api``."""
    _add_probes(api, service)
    _add_prototypes(api, service)
    _add_mlflow(api, service)


def _add_probes(api: FastAPI, service: Service) -> None:
    @api.get("/healthz", summary="Is the process alive?", responses=errors.responses(500))
    async def healthz() -> State:
        return State(status="alive")

    @api.get("/readyz", summary="Would a request be answered?", responses=errors.responses(500, 503))
    async def readyz() -> State:
        """Asks the model in use for a real answer."""
        if service.draining:
            raise errors.unavailable("the service is about to end: ask another one")
        model = service.models.current()
        try:
            await run_in_threadpool(model.check)
        except Exception as error:
            raise errors.unavailable("the model in use gives no sensible answer: see the log") from error
        return State(status="ready", refused=service.models.refused, **model.versions.as_dict())

    @api.get(
        "/metrics", summary="Counts for Prometheus", response_class=PlainTextResponse, responses=errors.responses(500)
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)


def _add_prototypes(api: FastAPI, service: Service) -> None:
    def given(request: Request, version: str | None) -> Any:
        if BINARY not in request.headers.get("accept", ""):
            return _found(service.models.bank(version))
        model = service.models.current()
        held = model.versions.bank.startswith(version or "")
        message = _found(model.bank_message if held else None)
        told = {"x-persona-host": model.versions.host, "x-persona-bank": model.versions.bank}
        return Response(message, media_type=BINARY, headers=told)

    binary: dict[int | str, dict[str, Any]] = {200: {"content": {BINARY: {"schema": BINARY_SCHEMA}}}}

    @api.get(
        "/v1/prototypes",
        summary="The prototype bank in use",
        response_model=Bank,
        responses=binary | errors.responses(401, 404, 500, 503),
    )
    async def prototypes(request: Request) -> Any:
        """As JSON; with `Accept: application/octet-stream` as the files that devices need, in one message."""
        return given(request, None)

    @api.get(
        "/v1/prototypes/{version}",
        summary="A version of the prototype bank",
        response_model=Bank,
        responses=binary | errors.responses(401, 404, 422, 500, 503),
    )
    async def prototypes_of(
        request: Request,
        version: Annotated[str, FromPath(pattern="^[0-9a-f]{8,64}$", description="Its first digits are enough.")],
    ) -> Any:
        """The bank in use, or one of the last that this process has used; as bytes the one in use alone."""
        return given(request, version)


def _found(bank: Any) -> Any:
    if bank is None:
        raise Refusal(404, "no_bank", "this service has not used such a prototype bank: see /v1/prototypes")
    return bank


def _add_mlflow(api: FastAPI, service: Service) -> None:
    @api.get("/ping", summary="MLflow's probe", response_class=PlainTextResponse, responses=errors.responses(500, 503))
    async def ping() -> Response:
        service.models.current()
        return PlainTextResponse("\n")

    @api.get(
        "/version", summary="The version of MLflow", response_class=PlainTextResponse, responses=errors.responses(500)
    )
    async def version() -> Response:
        return PlainTextResponse(installed("mlflow"))
