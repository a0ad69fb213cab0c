"""The pages of a service: what it does, to be tried, and what can be asked. They need nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

FOLDER = Path(__file__).with_name("page")


def add(api: FastAPI, front: str) -> None:
    """Add the pages to ``api``.

    Args:
        api: of the service.
        front: file of the page at `/`.
    """

    @api.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(FOLDER / front)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(FOLDER / "docs.html")

    api.mount("/page", StaticFiles(directory=FOLDER), name="page")
