"""What a request can end with besides its answer. None of it repeats what the request said: bodies may be personal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from starlette.types import Message


class Refusal(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        kind: a word for machines.
        sentence: for people: what is wrong, and how to mend it.
        headers: beside those of every answer.
    """

    def __init__(self, status: int, kind: str, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.kind, self.headers = status, kind, dict(headers or {})

    def body(self) -> bytes:
        """The JSON document of the answer."""
        return json.dumps({"error": str(self), "kind": self.kind}).encode()

    @cached_property
    def messages(self) -> tuple[Message, Message]:
        """The answer as ASGI sends it; made once, for the same refusal may go to thousands a second."""
        body = self.body()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.headers}
        listed = [(name.encode(), value.encode()) for name, value in headers.items()]
        start = {"type": "http.response.start", "status": self.status, "headers": listed}
        return start, {"type": "http.response.body", "body": body}


class Problem(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="One sentence: what is wrong, and how to mend it.")
    kind: str = Field(description="The kind of the fault, a word for machines.")


def over_capacity() -> Refusal:
    """The queue is full."""
    return Refusal(
        429,
        "over_capacity",
        "the service has more requests waiting than it takes: ask again later",
        {"retry-after": "1"},
    )


def too_late() -> Refusal:
    """The deadline has passed while the request waited."""
    return Refusal(
        503,
        "deadline",
        "the answer would come after the deadline of the request: ask again later",
        {"retry-after": "1"},
    )


def unavailable(reason: str) -> Refusal:
    """There is no model, or the service is about to end."""
    return Refusal(503, "unavailable", reason, {"retry-after": "1"})


def invalid(error: ValidationError, known: Sequence[str]) -> Refusal:
    """A body that does not fit its schema: says where and why, and repeats nothing of it.

    Args:
        error: of pydantic.
        known: names of fields that may be told.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Refusal(400, "not_json", "the body is not valid JSON: send one JSON object")
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in known)
    reason = "there is a field that nobody knows" if first["type"] == "extra_forbidden" else first["msg"]
    return Refusal(422, "invalid", f"{place or 'body'}: {reason}")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's account of refusals."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in statuses}


_MEANINGS = {
    400: "The body is not JSON.",
    401: "The API key is missing or unknown.",
    404: "There is no such thing.",
    409: "The device holds another host or prototype bank than the service.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "The body does not fit its schema.",
    429: "More requests are waiting than the service takes; `Retry-After` says when to ask again.",
    500: "A bug of the service.",
    503: "No answer in time, or no model; `Retry-After` says when to ask again.",
}
