"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`: a chat in other words."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from .answers import chat_work, counting_work
from .anthropic_shape import MessageShape
from .failures import invalid
from .flow import Flow
from .prompts import Defaults
from .protocol import ChatRequest, Count, FunctionCall, Message, NamedFunction, NamedTool, Part, Probability, ToolCall
from .tools import made
from .wire import json_response


class Source(Struct):
    """Of a picture: its bytes as base64. Others are not fetched."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class Block(Struct):
    """A piece of a message; which fields it has depends on its type."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: str | list[dict[str, Any]] | None = None
    is_error: bool | None = None
    thinking: str | None = None
    source: Source | None = None


class Turn(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class MessageTool(Struct):
    """Tools without an `input_schema` are those that Anthropic runs itself: they are left out."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None


class MessageToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None  # without effect here
    display: str | None = None  # without effect here


class CountRequest(Struct, kw_only=True):
    model: str | None = ""
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[Block] | None = None
    tools: Annotated[list[MessageTool], Meta(max_length=256)] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None


class MessageRequest(CountRequest, kw_only=True):
    max_tokens: Count
    stop_sequences: Annotated[list[str], Meta(max_length=16)] | None = None
    stream: bool | None = None
    temperature: Probability | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    seed: int | None = None
    cache_prompt: bool | None = None
    # without effect here
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    cache_control: dict[str, Any] | None = None
    inference_geo: str | None = None


class Anthropic:
    def __init__(self, flow: Flow, defaults: Defaults) -> None:
        self._flow = flow
        self._defaults = defaults

    async def messages(self, request: Request) -> Response:
        asked = await self._flow.asked(request, MessageRequest)
        model = self._flow.worker.catalog.named(asked.value.model)
        stream = bool(asked.value.stream)
        work = self._flow.later(asked, lambda one: chat_work(to_chat(one), self._defaults))
        shape = MessageShape(f"msg_{secrets.token_hex(12)}", model)
        return await self._flow.answer(request, model, work, shape, stream=stream, headers=asked.headers)

    async def count_tokens(self, request: Request) -> Response:
        n_token, headers = await self._flow.result(request, CountRequest, lambda one: counting_work(to_chat(one)))
        return json_response({"input_tokens": n_token}, 200, headers)


# ---------------------------------------------------------------- to a chat


def to_chat(value: CountRequest) -> ChatRequest:
    """The same as a chat. Raises ApiError."""
    messages: list[Message] = []
    if value.system:
        messages.append(Message("system", _text(value.system, "system", "\n\n")))
    for i, turn in enumerate(value.messages):
        messages += _messages(turn, f"messages[{i}]")
    tools = [
        made(one.name, one.description, one.input_schema, one.strict)
        for one in value.tools or []
        if one.input_schema is not None
    ]
    choice = value.tool_choice
    chat = ChatRequest(messages=messages, tools=tools or None)
    if choice and tools:
        names: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
        chat.tool_choice = names.get(choice.type) or NamedTool(NamedFunction(choice.name or ""))
        chat.parallel_tool_calls = not choice.disable_parallel_tool_use
    if value.thinking:
        chat.enable_thinking = value.thinking.type != "disabled"
    if isinstance(value, MessageRequest):
        chat.max_tokens, chat.stop = value.max_tokens, value.stop_sequences
        chat.temperature, chat.top_p, chat.top_k = value.temperature, value.top_p, value.top_k
        chat.seed, chat.cache_prompt = value.seed, value.cache_prompt
    return chat


def _messages(turn: Turn, where: str) -> Iterator[Message]:
    """A turn: results of tools come before what the user says with them, as they do in chats."""
    if isinstance(turn.content, str):
        yield Message(turn.role, turn.content)
        return
    texts: list[Block] = []
    calls: list[ToolCall] = []
    thought = ""
    for block in turn.content:
        if block.type == "tool_result":
            yield Message("tool", _result(block, where), tool_call_id=block.tool_use_id)
        elif block.type == "tool_use":
            arguments = json.dumps(block.input if isinstance(block.input, dict) else {}, ensure_ascii=False)
            calls.append(ToolCall(FunctionCall(block.name or "", arguments), block.id))
        elif block.type == "thinking":
            thought += block.thinking or ""
        elif block.type != "redacted_thinking":
            texts.append(block)
    if texts or calls or not turn.content:
        text = _content(texts, where) if turn.role == "user" else _text(texts, where, "")
        yield Message(turn.role, text, tool_calls=calls or None, reasoning_content=thought or None)


def _content(blocks: list[Block], where: str) -> str | list[Part]:
    """What a user says, with pictures."""
    if not any(block.type == "image" for block in blocks):
        return _text(blocks, where, "")
    parts = []
    for block in blocks:
        if block.type != "image":
            parts.append(Part("text", _text([block], where, "")))
        elif block.source is None or (block.source.data is None and block.source.url is None):
            raise invalid(f"`{where}`: a picture without a `source` of the type `base64`", where)
        else:
            url = block.source.url or f"data:{block.source.media_type or 'image'};base64,{block.source.data}"
            parts.append(Part("image_url", image_url=url))
    return parts


def _result(block: Block, where: str) -> str:
    if isinstance(block.content, list):
        text = _text(msgspec.convert(block.content, list[Block], strict=False), where, "\n")
    else:
        text = block.content or ""
    return f"Error: {text}" if block.is_error else text


def _text(content: str | list[Block], where: str, between: str) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text":
            raise invalid(f"`{where}`: nothing of the type `{block.type:.60}` is read here", where)
    return between.join(block.text or "" for block in content)
