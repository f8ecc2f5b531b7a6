"""The OpenAPI document: what the server takes and gives, made from the classes that do it."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from .. import __version__
from . import protocol, responses

_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_REF = "#/components/schemas/{name}"


@functools.cache
def document() -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    taken = [protocol.ChatRequest, protocol.CompletionRequest, protocol.EmbeddingRequest, protocol.BudgetRequest]
    given = [
        responses.ChatCompletion, responses.ChatChunk, responses.Completion, responses.Embeddings,
        responses.ModelList, responses.ModelCard, responses.ErrorResponse,
    ]  # fmt: skip
    _, schemas = msgspec.json.schema_components([*taken, *given], ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "EdgeMoE",
            "version": __version__,
            "description": "Mixture-of-Experts models inside a memory budget, behind OpenAI's API.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/chat/completions": _post("Answer a conversation", "ChatRequest", "ChatCompletion", "ChatChunk"),
            "/v1/completions": _post("Continue a text", "CompletionRequest", "Completion", "Completion"),
            "/v1/embeddings": _post("Turn texts into vectors, where the model can", "EmbeddingRequest", "Embeddings"),
            "/v1/models": _get("The models on offer", _json("ModelList")),
            "/v1/models/{model}": _get("One of them", _json("ModelCard"), "model"),
            "/health": _get("Whether the server lives", _content("application/json", {"type": "object"})),
            "/metrics": _get("Counters for Prometheus", _content("text/plain", {"type": "string"})),
            "/openapi.json": _get("This document", _content("application/json", {"type": "object"})),
            "/api/live": _get("What the runtime does, twice a second", _STREAM),
            "/api/budget": _post("Change the memory budget", "BudgetRequest", None),
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _content(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _json(name: str) -> dict[str, Any]:
    return _content("application/json", {"$ref": _REF.format(name=name)})


def _failures(*statuses: int) -> dict[str, Any]:
    reasons = {
        400: "the request makes no sense, or asks for what this server does not do",
        401: "the API key is missing or wrong",
        403: "the Host or Origin is not allowed", 404: "no such model", 413: "the body is too large",
        415: "the body is not JSON", 429: "the queue is full: come back after `Retry-After` seconds",
        500: "the server failed", 503: "the server is going down",
    }  # fmt: skip
    return {str(status): {"description": reasons[status], "content": _json("ErrorResponse")} for status in statuses}


def _post(summary: str, taken: str, given: str | None, streamed: str | None = None) -> dict[str, Any]:
    content = _json(given) if given else _content("application/json", {"type": "object"})
    if streamed:
        content |= _content("text/event-stream", {"type": "string", "description": f"`{streamed}` objects as events"})
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": _json(taken)},
            "responses": {
                "200": {"description": "done", "content": content},
                **_failures(400, 401, 403, 404, 413, 415, 429, 500, 503),
            },
        }
    }


def _get(summary: str, content: dict[str, Any], parameter: str = "") -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "done", "content": content}, **_failures(401, 403, 404, 500)},
    }
    if parameter:
        operation["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    return {"get": operation}
