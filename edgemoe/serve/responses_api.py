"""OpenAI's `/v1/responses`: a chat in other words. Items become messages, and an answer's events items again.

A response is remembered within the process, bounded in bytes, so that the next request may name it
(`previous_response_id`) in place of sending the conversation again.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from .answers import chat_work, counting_work
from .failures import ApiError, invalid
from .flow import Flow
from .prompts import Defaults
from .protocol import (
    ChatRequest,
    FunctionCall,
    JsonSchema,
    Limit,
    Message,
    NamedFunction,
    NamedTool,
    Part,
    Penalty,
    Probability,
    ResponseFormat,
    Seed,
    Temperature,
    Tool,
    ToolCall,
)
from .responses_shape import ResponsesShape, Said
from .tools import made
from .wire import json_response
from .worker import Work

_MAX_STORED_BYTES = 4 << 20
_PICTURE = "input_image"
_TEXTS = ("input_text", "output_text", "text", "refusal")


class Item(Struct):
    """One item of a conversation; which fields it has depends on its type."""

    type: str | None = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[dict[str, Any]] | None = None


class ResponseTool(Struct):
    """Functions are called; tools that OpenAI runs itself are left out."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(Struct):
    type: str
    name: str | None = None


class TextFormat(Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class Text(Struct):
    format: TextFormat | None = None
    verbosity: str | None = None  # without effect here


class Reasoning(Struct):
    effort: str | None = None
    summary: str | None = None  # without effect here
    generate_summary: str | None = None  # without effect here


class ResponseRequest(Struct, kw_only=True):
    model: str | None = ""
    input: str | list[Item] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Limit | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    cache_prompt: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    # without effect here
    user: str | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    stream_options: dict[str, Any] | None = None
    background: Literal[False] | None = None


class Responses:
    """The endpoint, and the conversations that it remembers."""

    def __init__(self, flow: Flow, defaults: Defaults) -> None:
        self._flow = flow
        self._defaults = defaults
        self._stored: OrderedDict[str, bytes] = OrderedDict()  # messages as JSON, the oldest first
        self._n_bytes = 0

    async def create(self, request: Request) -> Response:
        asked = await self._flow.asked(request, ResponseRequest)
        model = self._flow.worker.catalog.named(asked.value.model)
        before = self._before(asked.value.previous_response_id)
        stream, store, body = bool(asked.value.stream), asked.value.store is not False, asked.body
        progress = bool(asked.value.return_progress)
        work = self._flow.later(asked, lambda one: chat_work(to_chat(one, before), self._defaults))
        shape = ResponsesShape(f"resp_{secrets.token_hex(16)}", model, lambda: frame_of(_request(body)))
        if store:
            shape.when_done = lambda said: self._remember(shape.id, body, before, said)
        return await self._flow.answer(
            request, model, work, shape, stream=stream, progress=progress, headers=asked.headers
        )

    async def input_tokens(self, request: Request) -> Response:
        def work_of(one: ResponseRequest) -> Work:
            return counting_work(to_chat(one, self._before(one.previous_response_id)))

        n_token, headers = await self._flow.result(request, ResponseRequest, work_of)
        return json_response({"object": "response.input_tokens", "input_tokens": n_token}, 200, headers)

    def _before(self, name: str | None) -> bytes:
        if not name:
            return b"[]"
        found = self._stored.get(name)
        if found is None:
            raise ApiError(
                404,
                f"there is no response `{name:.100}` here: they are kept while the server runs, the last ones of them",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        self._stored.move_to_end(name)
        return found

    def _remember(self, name: str, body: bytes, before: bytes, said: Said) -> None:
        value = _request(body)
        calls = [ToolCall(FunctionCall(call.name, call.arguments), id) for id, call in said.calls] or None
        messages = [*_decoded(before), *messages_of(value), Message("assistant", said.text, tool_calls=calls)]
        content = msgspec.json.encode(messages)
        if len(content) > _MAX_STORED_BYTES:
            return
        self._stored[name] = content
        self._n_bytes += len(content)
        while self._n_bytes > _MAX_STORED_BYTES:
            _, oldest = self._stored.popitem(last=False)
            self._n_bytes -= len(oldest)


def frame_of(value: ResponseRequest) -> dict[str, Any]:
    """What a response says again of its request."""
    return {
        "instructions": value.instructions,
        "max_output_tokens": value.max_output_tokens,
        "metadata": value.metadata or {},
        "parallel_tool_calls": value.parallel_tool_calls is not False,
        "previous_response_id": value.previous_response_id,
        "reasoning": {"effort": value.reasoning.effort if value.reasoning else None, "summary": None},
        "store": value.store is not False,
        "temperature": value.temperature,
        "text": {"format": value.text.format if value.text and value.text.format else {"type": "text"}},
        "tool_choice": value.tool_choice or "auto",
        "tools": value.tools or [],
        "top_p": value.top_p,
        "truncation": "disabled",
        "user": value.user,
    }


# ---------------------------------------------------------------- to a chat


def to_chat(value: ResponseRequest, before: bytes) -> ChatRequest:
    """The same as a chat. before: the messages of the response that it follows, as JSON. Raises ApiError."""
    messages = [*_decoded(before), *messages_of(value)]
    if not messages:
        raise invalid("`input` is empty", "input")
    if value.instructions:
        messages.insert(0, Message("system", value.instructions))
    tools = [
        made(one.name, one.description, one.parameters, one.strict)
        for one in value.tools or []
        if one.type == "function"
    ]
    return ChatRequest(
        messages=_joined(messages),
        max_completion_tokens=value.max_output_tokens,
        temperature=value.temperature,
        top_p=value.top_p,
        seed=value.seed,
        presence_penalty=value.presence_penalty,
        frequency_penalty=value.frequency_penalty,
        cache_prompt=value.cache_prompt,
        timings_per_token=value.timings_per_token,
        tools=tools or None,
        tool_choice=_choice(value.tool_choice, tools),
        parallel_tool_calls=value.parallel_tool_calls,
        response_format=_format(value.text.format if value.text else None),
        reasoning_effort=value.reasoning.effort if value.reasoning else None,
    )


def messages_of(value: ResponseRequest) -> list[Message]:
    """Of a request's own input. Raises ApiError."""
    if isinstance(value.input, str):
        return [Message("user", value.input)]
    found: list[Message] = []
    for i, item in enumerate(value.input or []):
        where = f"input[{i}]"
        if item.type in (None, "message"):
            if item.role is None:
                raise invalid(f"`{where}` has no role", where)
            found.append(Message(item.role, _content(item.role, item.content, where)))
        elif item.type == "function_call":
            call = ToolCall(FunctionCall(item.name or "", item.arguments or "{}"), item.call_id or "")
            last = found[-1] if found else None
            if last is None or last.role != "assistant":
                last = Message("assistant", "")
                found.append(last)
            last.tool_calls = [*(last.tool_calls or []), call]
        elif item.type == "function_call_output":
            found.append(Message("tool", _text(item.output, where), tool_call_id=item.call_id))
        elif item.type != "reasoning":  # what a model thought is not shown to it again
            raise invalid(f"`{where}`: this server knows no items of the type `{item.type:.60}`", where)
    return found


def _content(role: str, content: str | list[dict[str, Any]] | None, where: str) -> str | list[Part]:
    """What a message says, a user's with pictures."""
    if role != "user" or not isinstance(content, list) or not any(part.get("type") == _PICTURE for part in content):
        return _text(content, where)
    parts = []
    for part in content:
        if part.get("type") != _PICTURE:
            parts.append(Part("text", _text([part], where)))
        elif not isinstance(part.get("image_url"), str):
            raise invalid(f"`{where}`: a picture without an `image_url`; there are no files here", where)
        else:
            parts.append(Part("image_url", image_url=part["image_url"]))
    return parts


def _text(content: str | list[dict[str, Any]] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") not in _TEXTS:
            raise invalid(f"`{where}`: nothing of the type `{part.get('type')!s:.60}` is read here", where)
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in content)


def _joined(messages: list[Message]) -> list[Message]:
    """With one system message at the beginning: most templates take no second one."""
    n = next((i for i, one in enumerate(messages) if one.role not in ("system", "developer")), len(messages))
    if n < 2:
        return messages
    texts = [one.content if isinstance(one.content, str) else "" for one in messages[:n]]
    return [Message("system", "\n\n".join(filter(None, texts))), *messages[n:]]


def _choice(choice: Any, tools: list[Tool]) -> Any:
    if isinstance(choice, ToolChoice):
        if choice.type != "function" or not choice.name:
            raise invalid(f"`tool_choice` of the type `{choice.type:.60}` is not supported", "tool_choice")
        return NamedTool(NamedFunction(choice.name))
    return choice if tools else None


def _format(form: TextFormat | None) -> ResponseFormat | None:
    if form is None:
        return None
    schema = msgspec.UNSET if form.schema is None else form.schema
    return ResponseFormat(form.type, JsonSchema(form.name, form.description, schema, form.strict))


def _decoded(content: bytes) -> list[Message]:
    return msgspec.json.decode(content, type=list[Message])


def _request(body: bytes) -> ResponseRequest:
    """Of a body that was decoded before."""
    return msgspec.json.decode(body, type=ResponseRequest)
