"""Routes of the classifier alone: examples, MLflow's scoring protocol, the page."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from pipelines.serving import errors, pages
from pipelines.serving.bodies import body_of, parse, to_bytes
from pipelines.serving.recsys.scoring import INVOCATIONS
from pipelines.serving.servable import Service
from pipelines.serving.vision.schemas import SCORING_EXAMPLES, PixelsRequest, Predictions, Scoring


class Stream(BaseModel):
    """Images as one device could show them."""

    name: str
    images: list[str] = Field(description="PNG files in base64, oldest first.")


class Examples(BaseModel):
    """Made-up streams, to try the service with."""

    streams: list[Stream]


def add(api: FastAPI, service: Service) -> None:
    """Add the routes to ``api``."""

    @api.get("/v1/examples", summary="Images to try", responses=errors.responses(401, 500, 503))
    async def examples() -> Examples:
        """The names of the classes, drawn here, as several devices could show them; nobody's data."""
        model: Any = service.models.current()
        return Examples(streams=await run_in_threadpool(model.examples))

    @api.post(
        INVOCATIONS,
        summary="MLflow's scoring protocol",
        response_model=None,
        responses={
            200: {"model": Predictions},
            **errors.responses(400, 401, 413, 415, 422, 429, 500, 503),
        },
        openapi_extra=body_of(Scoring, SCORING_EXAMPLES),
    )
    async def invocations(request: Request) -> Response:
        """What `mlflow models serve` answers for the same model: the images of one device as a tensor of pixels."""
        seconds = service.seconds(request.headers)
        body: Scoring = parse(
            request.headers, await request.body(), Scoring, ["inputs", "instances", "params", "level"]
        )
        rows = body.inputs or body.instances or []
        if not rows:
            return Response(to_bytes({"predictions": []}), media_type="application/json")
        answer = (await service.ask(PixelsRequest(pixels=rows, level=body.params.level), seconds)).content
        told = [
            {"class": name, "probability": max(row), "level": answer["level"], "fallback": answer["fallback"]}
            for name, row in zip(answer["classes"], answer["probabilities"], strict=True)
        ]
        return Response(to_bytes({"predictions": told}), media_type="application/json")

    pages.add(api, "images.html")
