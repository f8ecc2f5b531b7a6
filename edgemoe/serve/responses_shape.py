"""An answer in the words of `/v1/responses`: items that begin, grow and are done."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .calls import Call
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
from .timing import Timings
from .wire import SSE_KIND, SSE_WAITING, sse


@dataclass
class Said:
    """What an answer came to. calls: with their ids."""

    text: str = ""
    calls: list[tuple[str, Call]] = field(default_factory=list)


@dataclass
class _Open:
    """The item that is being written. kind: "message", "reasoning" or "function_call". call: its id and its name."""

    kind: str
    id: str
    call: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)


class ResponsesShape:
    """frame: makes what a response says of its request. when_done: told what was said."""

    kind = SSE_KIND

    def __init__(self, id: str, model: str, frame: Callable[[], dict[str, Any]]) -> None:
        self.id = id
        self.when_done: Callable[[Said], None] | None = None
        self._begin = {"id": id, "object": "response", "created_at": int(time.time()), "model": model}
        self._make_frame = frame
        self._n = 0  # of the next event
        self._output: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._said = Said()
        self._reason = "stop"
        self._n_thought = 0

    # ---------------------------------------------------------------- a stream

    def pieces(self, event: Event) -> bytes:
        return b"".join(self._pieces(event))

    def _pieces(self, event: Event) -> Iterator[bytes]:
        if isinstance(event, Started):
            for name in ("response.created", "response.in_progress"):
                yield self._event(name, response=self._response("in_progress", None))
        elif isinstance(event, Words) and event.text:
            self._said.text += event.text
            yield from self._grow("message", "response.output_text.delta", event.text, event.timings)
        elif isinstance(event, Thoughts):
            self._n_thought += len(event.tokens)
            yield from self._grow("reasoning", "response.reasoning_text.delta", event.text)
        elif isinstance(event, Calling):
            yield from self._close()
            yield from self._begin_call(event.name)
        elif isinstance(event, Arguments) and self._open:
            self._open.texts.append(event.text)
            place = {"item_id": self._open.id, "output_index": len(self._output)}
            yield self._event("response.function_call_arguments.delta", **place, delta=event.text)
        elif isinstance(event, Called) and self._open:
            self._said.calls.append((self._open.call["call_id"], event.call))
            yield from self._close()
        elif isinstance(event, Finished):
            self._reason = event.reason
            if not self._output and not self._open:
                yield from self._grow("message", "", "")
            yield from self._close()
        elif isinstance(event, Used):
            if self.when_done:
                self.when_done(self._said)
            status = "incomplete" if self._reason == "length" else "completed"
            yield self._event(f"response.{status}", response=self._response(status, event), **_timed(event.timings))

    def end(self) -> bytes:
        return b""

    def failure(self, error: ApiError) -> bytes:
        found = {"code": error.code or error.kind, "message": error.message}
        failed = self._event("response.failed", response={**self._response("failed", None), "error": found})
        return failed + self._event("error", **found, param=error.param)

    def ping(self) -> bytes:
        return SSE_WAITING

    def progress(self, progress: PromptProgress) -> bytes:
        """As llama.cpp tells it."""
        response = self._response("in_progress", None)
        return self._event("response.in_progress", response=response, prompt_progress=progress)

    # ---------------------------------------------------------------- a whole answer

    def whole(self, events: list[Event]) -> Any:
        for event in without_half_calls(events):
            self.pieces(event)
        used = used_in(events)
        return self._response("incomplete" if self._reason == "length" else "completed", used)

    # ---------------------------------------------------------------- pieces of it

    @functools.cached_property
    def _frame(self) -> dict[str, Any]:
        """Made when the answer begins: what waits is held as the bytes that came."""
        return {**self._begin, **self._make_frame()}

    def _event(self, name: str, /, **fields: Any) -> bytes:
        data = {"type": name, "sequence_number": self._n, **fields}
        self._n += 1
        return sse(data, name)

    def _response(self, status: str, used: Used | None) -> dict[str, Any]:
        usage = None
        if used:
            usage = {
                "input_tokens": used.n_prompt,
                "input_tokens_details": {"cached_tokens": used.n_cached},
                "output_tokens": used.n_completion,
                "output_tokens_details": {"reasoning_tokens": self._n_thought},
                "total_tokens": used.n_prompt + used.n_completion,
                **({"lossy": used.lossy} if used.lossy else {}),
            }
        return {
            **self._frame,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": list(self._output),
            "usage": usage,
        }

    def _grow(self, kind: str, name: str, text: str, timings: Timings | None = None) -> Iterator[bytes]:
        """More of a message, or of what is thought before it."""
        if self._open and self._open.kind != kind:
            yield from self._close()
        if self._open is None:
            prefix = "msg" if kind == "message" else "rs"
            self._open = _Open(kind, f"{prefix}_{secrets.token_hex(12)}")
            item = _item(self._open, "in_progress", [])
            yield self._event("response.output_item.added", output_index=len(self._output), item=item)
            yield self._event("response.content_part.added", **self._place(), part=_part(kind, ""))
        self._open.texts.append(text)
        if name:
            more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
            yield self._event(name, **self._place(), delta=text, **more, **_timed(timings))

    def _close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        if self._open.kind == "function_call":
            yield from self._end_call(self._open)
            return
        opened, text = self._open, "".join(self._open.texts)
        part = _part(opened.kind, text)
        if opened.kind == "message":
            yield self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
        else:
            yield self._event("response.reasoning_text.done", **self._place(), text=text)
        yield self._event("response.content_part.done", **self._place(), part=part)
        item = _item(opened, "incomplete" if self._reason == "length" else "completed", [part])
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None

    def _begin_call(self, name: str) -> Iterator[bytes]:
        call = {"call_id": f"call_{secrets.token_hex(12)}", "name": name}
        self._open = _Open("function_call", f"fc_{secrets.token_hex(12)}", call)
        item = _call_item(self._open, "", "in_progress")
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)

    def _end_call(self, opened: _Open) -> Iterator[bytes]:
        """Of a stream's last call only a half may be there."""
        whole = bool(self._said.calls) and self._said.calls[-1][0] == opened.call["call_id"]
        arguments, index = "".join(opened.texts), len(self._output)
        item = _call_item(opened, arguments, "completed" if whole else "incomplete")
        if whole:
            place = {"item_id": opened.id, "output_index": index, "name": opened.call["name"]}
            yield self._event("response.function_call_arguments.done", **place, arguments=arguments)
        yield self._event("response.output_item.done", output_index=index, item=item)
        self._output.append(item)
        self._open = None

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open.id, "output_index": len(self._output), "content_index": 0}


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "message":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}


def _item(opened: _Open, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    item = {"id": opened.id, "type": opened.kind, "status": status, "content": content}
    return {**item, "role": "assistant"} if opened.kind == "message" else {**item, "summary": []}


def _timed(timings: Timings | None) -> dict[str, Any]:
    return {"timings": timings} if timings else {}


def _call_item(opened: _Open, arguments: str, status: str) -> dict[str, Any]:
    return {"type": "function_call", "id": opened.id, **opened.call, "arguments": arguments, "status": status}
