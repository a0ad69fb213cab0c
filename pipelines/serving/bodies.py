"""Bodies of requests: read past FastAPI's own parsing, which takes several times as long, and told to OpenAPI by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ValidationError

from pipelines.serving import errors
from pipelines.serving.errors import Refusal

LONGEST_MS = 60_000
_DEADLINE = {
    "name": "X-Deadline-Ms",
    "in": "header",
    "required": False,
    "description": "Milliseconds within which the answer is of use; without it the service's own deadline counts.",
    "schema": {"type": "integer", "minimum": 1, "maximum": LONGEST_MS},
}

_KNOWN = ("history", "histories", "columns", "data", "index", "k", "level")


async def read(request: Request, schema: type[BaseModel], names: Sequence[str]) -> Any:
    """The body of a request.

    Raises:
        Refusal: it is not declared as JSON, is none, or does not fit the schema.
    """
    declared = request.headers.get("content-type", "")
    if declared.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "not_json", "send the body as JSON, with `Content-Type: application/json`")
    body = await request.body()
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise errors.invalid(error, names) from None


def to_bytes(content: Any) -> bytes:
    """JSON as it is sent."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def body_of(schema: type[BaseModel], examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """OpenAPI's account of a body that the route reads by itself."""
    named = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"schema": inlined(schema.model_json_schema()), "examples": named}}
    return {"requestBody": {"required": True, "content": content}, "parameters": [_DEADLINE]}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with its definitions put in their places, for OpenAPI keeps definitions elsewhere."""
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return resolve(definitions[part["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in part.items()}
        return [resolve(value) for value in part] if isinstance(part, list) else part

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def field_names(model: type[BaseModel]) -> set[str]:
    """Names of fields, however deep: what an error may repeat."""
    properties = json.dumps(inlined(model.model_json_schema()))
    return {*model.model_fields, *(name for name in _KNOWN if f'"{name}"' in properties)}
