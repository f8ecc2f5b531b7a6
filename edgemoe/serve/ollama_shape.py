"""An answer in Ollama's words: lines of JSON, the last of which has the counts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import msgspec

from .events import Called, Event, Finished, Thoughts, Used, Words, used_in
from .failures import ApiError
from .responses import PromptProgress


class LineShape:
    """chat: messages; else the words of `/api/generate`."""

    kind = "application/x-ndjson"

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model = model
        self._chat = chat
        self._begin_ns = time.monotonic_ns()
        self._reason = "stop"

    def pieces(self, event: Event) -> bytes:
        return b"".join(msgspec.json.encode(line) + b"\n" for line in self._lines(event))

    def _lines(self, event: Event) -> Iterator[dict[str, Any]]:
        if isinstance(event, Words) and event.text:
            yield self._line(event.text)
        elif isinstance(event, Thoughts):
            yield self._line("", thinking=event.text)
        elif isinstance(event, Called):
            yield self._line("", tool_calls=[_call(event)])
        elif isinstance(event, Finished):
            self._reason = "length" if event.reason == "length" else "stop"
        elif isinstance(event, Used):
            yield self._last("", event)

    def end(self) -> bytes:
        return b""

    def failure(self, error: ApiError) -> bytes:
        return msgspec.json.encode(failure(error)) + b"\n"

    def ping(self) -> bytes:
        return b""  # a line of nothing would be no JSON

    def progress(self, progress: PromptProgress) -> bytes:
        return b""

    def whole(self, events: list[Event]) -> Any:
        text = "".join(event.text for event in events if isinstance(event, Words))
        thought = "".join(event.text for event in events if isinstance(event, Thoughts))
        calls = [_call(event) for event in events if isinstance(event, Called)]
        finished = next((event for event in events if isinstance(event, Finished)), None)
        self._reason = "length" if finished and finished.reason == "length" else "stop"
        used = used_in(events)
        more: dict[str, Any] = {"thinking": thought} if thought else {}
        return self._last(text, used, **more, **({"tool_calls": calls} if calls else {}))

    def loaded(self) -> dict[str, Any]:
        """Nothing was asked but to load the model."""
        return {**self._line(""), "done": True, "done_reason": "load"}

    def _line(self, text: str, **more: Any) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._model, "created_at": time_text(time.time())}
        if self._chat:
            line["message"] = {"role": "assistant", "content": text, **more}
        else:
            line |= {"response": text, **more}
        return {**line, "done": False}

    def _last(self, text: str, used: Used, **more: Any) -> dict[str, Any]:
        timings = used.timings
        return {
            **self._line(text, **more),
            "done": True,
            "done_reason": self._reason,
            "total_duration": time.monotonic_ns() - self._begin_ns,
            "load_duration": 0,
            "prompt_eval_count": used.n_prompt,
            "prompt_eval_duration": int(timings.prompt_ms * 1e6) if timings else 0,
            "eval_count": used.n_completion,
            "eval_duration": int(timings.predicted_ms * 1e6) if timings else 0,
        }


def _call(event: Called) -> dict[str, Any]:
    function = {"index": event.number, "name": event.call.name, "arguments": json.loads(event.call.arguments)}
    return {"function": function}


def failure(error: ApiError) -> dict[str, Any]:
    """In Ollama's shape."""
    return {"error": error.message}


def time_text(seconds: float) -> str:
    """As Ollama writes a time, which is of the epoch."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
