"""The process of a service: start, signals, drain."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import time
from types import FrameType

import uvicorn

from pipelines.serving.app import Service

# A thread that wants the interpreter waits at most so long for the one that has it; the default is 5 ms.
SWITCH_SECONDS = 0.0005
DRAIN_SECONDS = 30


class _Server(uvicorn.Server):
    """Denies readiness as soon as it is told to end, and goes on answering for a while before it closes."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service, self._end = service, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; Ctrl-C, or a second signal, closes at once."""
        if self.service.draining or sig == signal.SIGINT:
            super().handle_exit(sig, frame)
        self.service.draining = True
        self._end = time.monotonic() + self.service.config.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: whether to close."""
        if self.service.draining and time.monotonic() >= self._end:
            self.should_exit = True
        return await super().on_tick(counter)


def run(service: Service, host: str, port: int) -> int:
    """Serve until a signal comes; 0 if the service started and ended as it should, 1 if it could not listen.

    Raises:
        PersonaError: the model cannot be used.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    service.models.refresh()
    # What is there now stays: a look through all of it for garbage would stop the service for some 50 ms, again and again.
    gc.collect()
    gc.freeze()
    config = uvicorn.Config(
        service.app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config, service)
    server.run()
    return 0 if server.started else 1
