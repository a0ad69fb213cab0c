"""What a task brings to a service: a loaded version of a model that answers batches of requests.

The service itself knows no task. It reads a body into the ``request`` of an ``Operation``, puts it into a batch with others,
calls ``Servable.answer`` once, and sends what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI
from pydantic import BaseModel, Field

from pipelines.serving.metrics import Metrics

BINARY = "application/octet-stream"
BINARY_SCHEMA = {"type": "string", "format": "binary"}


@dataclass(frozen=True)
class Versions:
    """What an answer was made with.

    Attributes:
        name: of the registered model, or of the folder.
        version: of the model.
        host: digest of the host.
        bank: version of the prototype bank, empty without one.
    """

    name: str
    version: str
    host: str
    bank: str

    def as_dict(self) -> dict[str, Any]:
        """As answers carry it."""
        return {"model": {"name": self.name, "version": self.version}, "host": self.host, "bank": self.bank}


class ModelVersion(BaseModel):
    """The registered model that answered."""

    name: str
    version: str


class VersionedAnswer(BaseModel):
    """What every answer says of its making."""

    model: ModelVersion
    host: str = Field(description="Digest of the host.")
    bank: str = Field(description="Version of the prototype bank, empty without one.")


@dataclass(frozen=True)
class Operation:
    """One thing that can be asked for.

    Attributes:
        path: of HTTP, POST.
        request: the body.
        response: the answer as JSON.
        summary: one line.
        description: what the documentation says.
        examples: bodies by name.
        binary: whether the answer can be had as plain bytes too.
        conflicts: whether a device can hold another version than is wanted.
    """

    path: str
    request: type[BaseModel]
    response: type[BaseModel]
    summary: str
    description: str
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)
    binary: bool = False
    conflicts: bool = False


@dataclass(frozen=True)
class Reply:
    """The answer to one request.

    Attributes:
        content: JSON values.
        message: the same as bytes, where the operation has them.
    """

    content: dict[str, Any]
    message: bytes | None = None


class Servable(Protocol):
    """A loaded version of a model."""

    versions: Versions

    @property
    def rows(self) -> int:
        """How many requests fit into one batch, for the memory it takes."""

    def answer(self, requests: Sequence[BaseModel]) -> list[Reply | Exception]:
        """Every request's reply, or the ``Refusal`` it ends with, in order; the requests may be of any operation."""

    def check(self) -> None:
        """Answer a real request; raises where that fails or makes no sense."""

    def prototypes(self) -> dict[str, Any] | None:
        """What is told of the prototype bank; ``None`` without one."""

    @property
    def bank_message(self) -> bytes | None:
        """The prototype bank as devices take it; ``None`` without one."""


class InUse(Protocol):
    """The version that answers, and the banks of those before it."""

    refused: str

    def current(self) -> Servable:
        """The version in use.

        Raises:
            Refusal: there is none yet.
        """

    def bank(self, version: str | None = None) -> dict[str, Any] | None:
        """What is told of a prototype bank, of the one in use by default; ``None`` where none is known."""


class Service(Protocol):
    """What routes are given of the service that they are a part of."""

    draining: bool

    @property
    def models(self) -> InUse:
        """The model in use."""

    @property
    def metrics(self) -> Metrics:
        """Counts of what was answered."""

    async def ask(self, request: BaseModel, seconds: float) -> Reply:
        """The reply to one request, by way of the queue; see ``app.Service``."""

    def seconds(self, headers: Mapping[str, str]) -> float:
        """How long a request with these headers may wait."""


class Task(Protocol):
    """A kind of bundles: what can be asked of them, and how they are loaded."""

    @property
    def operations(self) -> Sequence[Operation]:
        """What can be asked for."""

    @property
    def body_bytes(self) -> int:
        """The largest body that makes sense."""

    def extend(self, api: FastAPI, service: Service) -> None:
        """Add routes of this task alone."""

    def load(self, folder: Path, name: str, version: str) -> Servable:
        """Read a bundle.

        Raises:
            PersonaError: it cannot be read, or its parts do not belong together.
        """
