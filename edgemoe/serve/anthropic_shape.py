"""An answer in the words of `/v1/messages`: blocks that begin, grow and end."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from .events import (
    Arguments,
    Called,
    Calling,
    Event,
    Finished,
    Started,
    Thoughts,
    Used,
    Words,
    used_in,
    without_half_calls,
)
from .failures import ApiError
from .responses import PromptProgress
from .wire import SSE_KIND, sse

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageShape:
    kind = SSE_KIND

    def __init__(self, id: str, model: str) -> None:
        self._message: dict[str, Any] = {
            "id": id, "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": None,
            "stop_sequence": None,
        }  # fmt: skip
        self._blocks: list[dict[str, Any]] = []
        self._open = ""  # the type of the block that is being written
        self._ended: dict[str, Any] = {}

    def pieces(self, event: Event) -> bytes:
        return b"".join(self._pieces(event))

    def _pieces(self, event: Event) -> Iterator[bytes]:
        if isinstance(event, Started):
            yield _event("message_start", message={**self._message, "usage": _usage(Used(event.n_prompt, 0, 0))})
        elif isinstance(event, Words) and event.text:
            yield from self._grow("text", {"type": "text_delta", "text": event.text})
        elif isinstance(event, Thoughts):
            yield from self._grow("thinking", {"type": "thinking_delta", "thinking": event.text})
        elif isinstance(event, Calling):
            yield from self._close()
            block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": event.name, "input": {}}
            yield from self._begin(block)
        elif isinstance(event, Arguments):
            delta = {"type": "input_json_delta", "partial_json": event.text}
            yield _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)
        elif isinstance(event, Called):
            self._blocks[-1]["input"] = json.loads(event.call.arguments)
            yield from self._close()
        elif isinstance(event, Finished):
            yield from self._close()
            reason = "stop_sequence" if event.stop else _REASONS.get(event.reason, "end_turn")
            self._ended = {"stop_reason": reason, "stop_sequence": event.stop or None}
        elif isinstance(event, Used):
            yield _event("message_delta", delta=self._ended, usage=_usage(event))

    def end(self) -> bytes:
        return _event("message_stop")

    def failure(self, error: ApiError) -> bytes:
        return sse(failure(error), "error")

    def ping(self) -> bytes:
        return _event("ping")

    def progress(self, progress: PromptProgress) -> bytes:
        return b""

    def whole(self, events: list[Event]) -> Any:
        for event in without_half_calls(events):
            self.pieces(event)
        used = used_in(events)
        return {**self._message, "content": self._blocks, **self._ended, "usage": _usage(used)}

    def _grow(self, kind: str, delta: dict[str, Any]) -> Iterator[bytes]:
        """kind: also the name of the field that holds the text."""
        if self._open != kind:
            yield from self._close()
            yield from self._begin({"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})})
        self._blocks[-1][kind] += delta[kind]
        yield _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _begin(self, block: dict[str, Any]) -> Iterator[bytes]:
        self._blocks.append(block)
        self._open = block["type"]
        yield _event("content_block_start", index=len(self._blocks) - 1, content_block=block)

    def _close(self) -> Iterator[bytes]:
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": ""}
            yield _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)
        if self._open:
            yield _event("content_block_stop", index=len(self._blocks) - 1)
        self._open = ""


def _event(name: str, /, **fields: Any) -> bytes:
    return sse({"type": name, **fields}, name)


def _usage(used: Used) -> dict[str, Any]:
    """Anthropic counts what was read from a cache apart."""
    return {
        "input_tokens": used.n_prompt - used.n_cached,
        "cache_read_input_tokens": used.n_cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": used.n_completion,
        **({"lossy": used.lossy} if used.lossy else {}),
    }


def failure(error: ApiError) -> dict[str, Any]:
    """In Anthropic's shape."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
    kinds |= {429: "rate_limit_error", 503: "overloaded_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
