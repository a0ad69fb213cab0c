"""Routes of the recommender alone: its catalogue, MLflow's scoring protocol, the page."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from pipelines.serving import errors, pages
from pipelines.serving.bodies import body_of, parse, to_bytes
from pipelines.serving.recsys import scoring
from pipelines.serving.servable import Service


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
    _add_catalogue(api, service)
    _add_scoring(api, service)
    pages.add(api, "index.html")


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


def _add_scoring(api: FastAPI, service: Service) -> None:
    names = ["dataframe_split", "dataframe_records", "inputs", "instances", "params", "history", "k", "level", "data"]

    @api.post(
        scoring.INVOCATIONS,
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
        body: scoring.Scoring = parse(request.headers, await request.body(), scoring.Scoring, names)
        replies = await asyncio.gather(*(service.ask(row, seconds) for row in body.requests()))
        return Response(
            to_bytes({"predictions": [scoring.prediction(reply.content) for reply in replies]}),
            media_type="application/json",
        )
