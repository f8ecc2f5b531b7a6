"""The OpenAPI document: what the server takes and gives, made from the classes that do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .. import __version__
from . import protocol, responses
from .anthropic import CountRequest, MessageRequest
from .native_api import DetokenizeRequest, InfillRequest, NativeRequest, TokenizeRequest
from .ollama import OllamaChat, OllamaGenerate, OllamaShow
from .responses_api import ResponseRequest

_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_REF = "#/components/schemas/{name}"


_ANY = {"type": "object"}
_OTHER = {"type": "object", "required": ["error"]}  # Anthropic's and Ollama's errors


def document(models: Sequence[str], *, strict: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 document. models: those on offer. strict: unknown parameters are refused."""
    _, schemas = msgspec.json.schema_components([*_TAKEN, *_GIVEN], ref_template=_REF)
    for kind in _TAKEN:
        schema = schemas[kind.__name__]
        if "model" in schema["properties"]:
            schema["properties"]["model"] = _model(models)
        if strict and kind is not protocol.BudgetRequest:
            schema["additionalProperties"] = False
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "EdgeMoE",
            "version": __version__,
            "description": "Mixture-of-Experts models inside a memory budget, behind the APIs that clients know.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {**_openai_paths(), **_other_paths(), **_own_paths()},
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"key": []}, {"x-api-key": []}],
    }


def _model(models: Sequence[str]) -> dict[str, Any]:
    """Any name is taken for the one model that there is; of several one is named."""
    if len(models) == 1:
        return {"type": ["string", "null"], "default": models[0], "examples": list(models)}
    return {"type": ["string", "null"], "default": models[0], "enum": [*models, "", None]}


_TAKEN: tuple[type[msgspec.Struct], ...] = (
    protocol.ChatRequest, protocol.CompletionRequest, protocol.EmbeddingRequest, protocol.BudgetRequest,
    ResponseRequest, MessageRequest, CountRequest, OllamaChat, OllamaGenerate, OllamaShow, NativeRequest,
    InfillRequest, TokenizeRequest, DetokenizeRequest,
)  # fmt: skip
_GIVEN: tuple[type[msgspec.Struct], ...] = (
    responses.ChatCompletion, responses.ChatChunk, responses.Completion, responses.ModelList, responses.ModelCard,
    responses.ErrorResponse,
)  # fmt: skip


def _openai_paths() -> dict[str, Any]:
    return {
        "/v1/chat/completions": _post("Answer a conversation", "ChatRequest", "ChatCompletion", "ChatChunk"),
        "/v1/chat/completions/input_tokens": _post("Count a conversation's tokens", "ChatRequest", None),
        "/v1/completions": _post("Continue a text", "CompletionRequest", "Completion", "Completion"),
        "/v1/responses": _post("Answer items", "ResponseRequest", None, "response.*"),
        "/v1/responses/input_tokens": _post("Count items' tokens", "ResponseRequest", None),
        "/v1/embeddings": _refused("Refused: the models here continue text", "EmbeddingRequest"),
        "/v1/models": _get("The models on offer", _json("ModelList")),
        "/v1/models/{model}": _get("One of them", _json("ModelCard"), "model"),
    }


def _other_paths() -> dict[str, Any]:
    lines = _content("application/x-ndjson", {"type": "string"})
    return {
        "/v1/messages": _post(
            "Answer a conversation, as Anthropic", "MessageRequest", None, "message_*", failing=_OTHER
        ),
        "/v1/messages/count_tokens": _post("Count a conversation's tokens", "CountRequest", None, failing=_OTHER),
        "/api/chat": _post("Answer a conversation, as Ollama", "OllamaChat", None, more=lines, failing=_OTHER),
        "/api/generate": _post("Answer a prompt, as Ollama", "OllamaGenerate", None, more=lines, failing=_OTHER),
        "/api/show": _post("What a model is, as Ollama", "OllamaShow", None, failing=_OTHER),
        "/api/tags": _get("The models on offer, as Ollama", _content("application/json", _ANY)),
        "/api/ps": _get("The model in memory, as Ollama", _content("application/json", _ANY)),
        "/api/version": _get("The version, as Ollama", _content("application/json", _ANY)),
        "/completion": _post("Continue a text, as llama.cpp", "NativeRequest", None, "the same"),
        "/infill": _post("Fill in the middle of a text, as llama.cpp", "InfillRequest", None, "the same"),
        "/tokenize": _post("A text's tokens", "TokenizeRequest", None),
        "/detokenize": _post("Tokens' text", "DetokenizeRequest", None),
        "/apply-template": _post("What a model is shown of a conversation", "ChatRequest", None),
        "/props": _get("How the server was started, as llama.cpp", _content("application/json", _ANY)),
        "/slots": _get("What is computed, as llama.cpp", _content("application/json", {"type": "array"})),
    }


def _own_paths() -> dict[str, Any]:
    return {
        "/health": _get("Whether the server lives", _content("application/json", _ANY)),
        "/metrics": _get("Counters for Prometheus", _content("text/plain", {"type": "string"})),
        "/openapi.json": _get("This document", _content("application/json", _ANY)),
        "/api/live": _get("What the runtime does, twice a second", _STREAM),
        "/api/budget": _post("Change the memory budget", "BudgetRequest", None),
    }


def _content(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _json(name: str) -> dict[str, Any]:
    return _content("application/json", {"$ref": _REF.format(name=name)})


def _failures(*statuses: int, shape: dict[str, Any] | None = None) -> dict[str, Any]:
    """shape: of other protocols' errors."""
    reasons = {
        400: "the request makes no sense, or asks for what this server does not do",
        401: "the API key is missing or wrong",
        403: "the Host or Origin is not allowed", 404: "no such model",
        413: "the body is too large", 408: "the body did not come in time", 415: "the body is not JSON",
        429: "the queue is full: come back after `Retry-After` seconds",
        500: "the server failed", 503: "the server is going down",
    }  # fmt: skip
    content = _content("application/json", shape) if shape else _json("ErrorResponse")
    return {str(status): {"description": reasons[status], "content": content} for status in statuses}


def _post(
    summary: str,
    taken: str,
    given: str | None,
    streamed: str | None = None,
    more: dict[str, Any] | None = None,
    failing: dict[str, Any] | None = None,
) -> dict[str, Any]:
    content = (_json(given) if given else _content("application/json", _ANY)) | (more or {})
    if streamed:
        content |= _content("text/event-stream", {"description": f"`{streamed}` objects as events"})
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": _json(taken)},
            "responses": {
                "200": {"description": "done", "content": content},
                **_failures(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, shape=failing),
            },
        }
    }


def _refused(summary: str, taken: str) -> dict[str, Any]:
    found = _post(summary, taken, None)
    del found["post"]["responses"]["200"]
    return found


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
