"""Routes beside the operations of a task: prototypes, the catalogue, probes, MLflow's protocol, the page."""

from __future__ import annotations

import asyncio
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as FromPath
from fastapi.responses import FileResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from pipelines.serving import errors, scoring
from pipelines.serving.bodies import body_of, read, to_bytes
from pipelines.serving.errors import Refusal
from pipelines.serving.recsys_schemas import ModelVersion

if TYPE_CHECKING:
    from pipelines.serving.app import Service

INVOCATIONS = "/invocations"
PAGE = Path(__file__).with_name("page")
PATHS = (INVOCATIONS, "/v1/prototypes", "/v1/items", "/v1/examples", "/healthz", "/readyz", "/metrics", "/")


class State(BaseModel):
    """Whether the service is well."""

    status: str
    model: ModelVersion | None = None
    host: str = ""
    bank: str = ""
    refused: str = Field("", description="Why the newest version is not in use, empty if it is.")


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


class Item(BaseModel):
    """An item of the catalogue."""

    id: str
    title: str | None


class Items(BaseModel):
    """Some items."""

    items: list[Item]


class Examples(BaseModel):
    """Made-up histories, to try the service with."""

    histories: list[list[Item]]


def add(api: FastAPI, service: Service) -> None:
    """Add the routes to ``api``."""
    _add_probes(api, service)
    _add_prototypes(api, service)
    _add_catalogue(api, service)
    _add_mlflow(api, service)

    @api.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")


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
    @api.get(
        "/v1/prototypes",
        summary="The prototype bank in use",
        response_model=Bank,
        responses=errors.responses(401, 404, 500, 503),
    )
    async def prototypes() -> Any:
        return _found(service.models.bank())

    @api.get(
        "/v1/prototypes/{version}",
        summary="A version of the prototype bank",
        response_model=Bank,
        responses=errors.responses(401, 404, 422, 500),
    )
    async def prototypes_of(
        version: Annotated[str, FromPath(pattern="^[0-9a-f]{8,64}$", description="Its first digits are enough.")],
    ) -> Any:
        """The bank in use, or one of the last that this process has used."""
        return _found(service.models.bank(version))


def _found(bank: dict[str, Any] | None) -> dict[str, Any]:
    if bank is None:
        raise Refusal(404, "no_bank", "this service has not used such a prototype bank: see /v1/prototypes")
    return bank


def _add_catalogue(api: FastAPI, service: Service) -> None:
    @api.get("/v1/items", summary="Search the catalogue", responses=errors.responses(401, 422, 500, 503))
    async def items(query: Annotated[str, Query(max_length=100)] = "") -> Items:
        """Items whose title or id holds a text, twenty at most."""
        model: Any = service.models.current()
        return Items(items=await run_in_threadpool(model.search, query))

    @api.get("/v1/examples", summary="Histories to try", responses=errors.responses(401, 500, 503))
    async def examples() -> Examples:
        """Made up from the catalogue by the host alone; no user's data."""
        model: Any = service.models.current()
        return Examples(histories=await run_in_threadpool(model.examples))


def _add_mlflow(api: FastAPI, service: Service) -> None:
    names = ["dataframe_split", "dataframe_records", "inputs", "instances", "params", "history", "k", "level", "data"]

    @api.post(
        INVOCATIONS,
        summary="MLflow's scoring protocol",
        response_model=None,
        responses={
            200: {"model": scoring.Predictions},
            **errors.responses(400, 401, 413, 415, 422, 429, 500, 503),
        },
        openapi_extra=body_of(scoring.Scoring, scoring.EXAMPLES),
    )
    async def invocations(request: Request) -> Response:
        """What `mlflow models serve` answers for the same model."""
        seconds = service.seconds(request.headers)
        body: scoring.Scoring = await read(request, scoring.Scoring, names)
        replies = await asyncio.gather(*(service.ask(row, seconds) for row in body.requests()))
        return Response(
            to_bytes({"predictions": [scoring.prediction(reply.content) for reply in replies]}),
            media_type="application/json",
        )

    @api.get("/ping", summary="MLflow's probe", response_class=PlainTextResponse, responses=errors.responses(500, 503))
    async def ping() -> Response:
        service.models.current()
        return PlainTextResponse("\n")

    @api.get(
        "/version", summary="The version of MLflow", response_class=PlainTextResponse, responses=errors.responses(500)
    )
    async def version() -> Response:
        return PlainTextResponse(installed("mlflow"))
