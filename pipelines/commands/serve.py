"""The command `persona serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persona.errors import ConfigError
from pipelines.doctor import free_port, port_taken


def serve(
    model: Annotated[
        str,
        typer.Option(
            help="A bundle's folder, or a registered model: models:/NAME@ALIAS or models:/NAME/NUMBER; the champion of the store's "
            "only model by default."
        ),
    ] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    api_keys: Annotated[
        Path | None, typer.Option(help="File with the API keys, one a line, that may ask; else everybody may.")
    ] = None,
    poll: Annotated[float, typer.Option(help="Seconds between looks for a newer version.", min=0.05)] = 10.0,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are answered with 429.", min=1)] = 256,
    target_ms: Annotated[float, typer.Option(help="Milliseconds that one batch should compute.", min=0.1)] = 5.0,
    deadline_ms: Annotated[
        int, typer.Option(help="Milliseconds a request may wait if it does not say so itself.", min=1, max=60_000)
    ] = 1000,
    index: Annotated[
        str,
        typer.Option(
            help="Find the best items of a large catalogue by this faiss index, as IVF4096,Flat or HNSW32: faster, and not all "
            "are found. Needs `pip install faiss-cpu` and a bundle released with --item-table. Default: exact."
        ),
    ] = "",
    probes: Annotated[int, typer.Option(help="Lists that an IVF index looks into: more find more.", min=1)] = 32,
    drain: Annotated[
        float, typer.Option(help="Seconds of denied readiness before the end, for a load balancer to notice.", min=0)
    ] = 0.0,
) -> int:
    """Answer over HTTP with a released model, and take up newer versions while doing so.

    The page is at `/`, the documentation at `/docs`, Prometheus asks `/metrics`, probes `/healthz` and `/readyz`.
    """
    from pipelines.serving.app import Service
    from pipelines.serving.config import ServingConfig, read_api_keys
    from pipelines.serving.server import run
    from pipelines.serving.sources import source_of
    from pipelines.serving.tasks import task_of
    from recsys.serving.index import IndexConfig

    if port_taken(port):
        raise ConfigError(f"port {port} is taken by another program: persona serve --port {free_port(port)}")
    keys = () if api_keys is None else read_api_keys(api_keys)
    config = ServingConfig(
        queue=queue, target_ms=target_ms, deadline_ms=deadline_ms, poll_seconds=poll, drain_seconds=drain, api_keys=keys
    )
    source = source_of(model or _champion())
    return run(Service(task_of(source, IndexConfig(index, probes)), source, config), host, port)


def _champion() -> str:
    """The champion of the only model of the store in use."""
    from pipelines import tracking
    from pipelines.versions import names

    return f"models:/{names.usual(tracking.client())}@{names.CHAMPION}"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog="Example:  persona serve --model work/bundle --port 8000")(serve)
