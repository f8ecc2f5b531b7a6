"""Ollama's `/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, `/api/version` and `/api/ps`.

Its streams are lines of JSON, its times nanoseconds, and it streams unless it is told not to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..runtime.engine.engine import Engine
from .answers import chat_work, completion_work
from .catalog import Entry
from .failures import invalid
from .flow import Flow
from .ollama_shape import LineShape, time_text
from .prompts import Defaults
from .protocol import (
    Amount,
    ChatRequest,
    CompletionRequest,
    FunctionCall,
    JsonSchema,
    Limit,
    Message,
    Part,
    Penalty,
    Probability,
    ResponseFormat,
    Sampled,
    Seed,
    Stop,
    Temperature,
    Tool,
    ToolCall,
)
from .wire import json_response


class Options(Struct):
    """As `Sampled` calls them, but for num_predict. num_ctx and what follows are the server's own to say."""

    num_predict: Limit | None = None
    temperature: Temperature | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Probability | None = None
    min_p: Annotated[float, Meta(ge=0, lt=1)] | None = None
    typical_p: Probability | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    repeat_last_n: Limit | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Amount | None = None
    mirostat_eta: Amount | None = None
    # without effect here
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    num_keep: int | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    penalize_newline: bool | None = None


_OURS = frozenset(Sampled.__struct_fields__) & frozenset(Options.__struct_fields__)


class OllamaFunction(Struct):
    name: str
    arguments: dict[str, Any] | None = None


class OllamaCall(Struct):
    function: OllamaFunction
    id: str | None = None


class OllamaMessage(Struct):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = ""
    images: list[str] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    thinking: str | None = None


class _Asked(Struct, kw_only=True):
    model: str | None = ""
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | str | None = None
    # without effect here
    keep_alive: str | float | None = None


class OllamaChat(_Asked, kw_only=True):
    messages: list[OllamaMessage] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None

    def is_empty(self) -> bool:
        return not self.messages


class OllamaGenerate(_Asked, kw_only=True):
    """raw: the prompt is given to the model as it is, without its template."""

    prompt: str | None = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[str] | None = None

    def is_empty(self) -> bool:
        return not self.prompt


class OllamaShow(Struct, kw_only=True):
    model: str | None = ""
    name: str | None = None
    verbose: bool | None = None  # without effect here


class Ollama:
    def __init__(self, flow: Flow, defaults: Defaults) -> None:
        self._flow = flow
        self._defaults = defaults

    async def chat(self, request: Request) -> Response:
        return await self._answered(request, OllamaChat, lambda one: chat_work(_chat(one), self._defaults))

    async def generate(self, request: Request) -> Response:
        def build(one: OllamaGenerate) -> Any:
            _check(one)
            return (
                completion_work(_raw(one), self._defaults)
                if one.raw or one.suffix
                else chat_work(_prompt(one), self._defaults)
            )

        return await self._answered(request, OllamaGenerate, build)

    async def _answered(
        self, request: Request, kind: type[OllamaChat | OllamaGenerate], build: Callable[[Any], Any]
    ) -> Response:
        asked = await self._flow.asked(request, kind)
        model = self._flow.worker.catalog.named(asked.value.model)
        shape = LineShape(model, chat=kind is OllamaChat)
        if asked.value.is_empty():
            return await self._loaded(request, model, shape, asked.headers)
        stream = asked.value.stream is not False
        work = self._flow.later(asked, build)
        return await self._flow.answer(request, model, work, shape, stream=stream, headers=asked.headers)

    async def _loaded(self, request: Request, model: str, shape: LineShape, headers: Mapping[str, str]) -> Response:
        """An empty request loads a model."""

        def work(engine: Engine) -> Iterator[str]:
            yield engine.model.info.name

        await self._flow.results(request, model, work)
        return json_response(shape.loaded(), 200, headers)

    async def tags(self, request: Request) -> Response:
        return json_response({"models": [_card(entry) for entry in self._flow.worker.catalog.entries.values()]})

    async def show(self, request: Request) -> Response:
        asked = await self._flow.asked(request, OllamaShow)
        catalog = self._flow.worker.catalog
        entry = catalog.entries[catalog.named(asked.value.model or asked.value.name)]
        loaded = catalog.current
        template = loaded[1].model.chat_template if loaded and loaded[0] == entry.name else None
        return json_response({
            "modelfile": f"FROM {entry.path.name}",
            "parameters": "",
            "template": template or "",
            "details": _details(entry),
            "model_info": {
                "general.architecture": entry.kind,
                f"{entry.kind}.context_length": entry.n_ctx,
                f"{entry.kind}.expert_count": entry.n_expert,
            },
            "capabilities": ["completion", "tools", *(["vision"] if entry.reads_pictures else [])],
            "modified_at": time_text(entry.created),
        }, 200, asked.headers)  # fmt: skip

    async def version(self, request: Request) -> Response:
        return json_response({"version": __version__})

    async def ps(self, request: Request) -> Response:
        catalog = self._flow.worker.catalog
        loaded = catalog.current
        if not loaded:
            return json_response({"models": []})
        entry = catalog.entries[loaded[0]]
        card = _card(entry)
        card.pop("modified_at")
        never = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": entry.n_ctx}
        return json_response({"models": [{**card, **never}]})


def _card(entry: Entry) -> dict[str, Any]:
    # Ollama's digest is a hash of the content; this one says which file it is.
    digest = hashlib.sha256(f"{entry.path}:{entry.size_bytes}:{entry.created}".encode("utf-8", "replace")).hexdigest()
    return {
        "name": entry.name,
        "model": entry.name,
        "modified_at": time_text(entry.created),
        "size": entry.size_bytes,
        "digest": digest,
        "details": _details(entry),
    }


def _details(entry: Entry) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf" if entry.path.suffix == ".gguf" else "onnx",
        "family": entry.kind,
        "families": [entry.kind],
        "parameter_size": "",
        "quantization_level": "",
    }


# ---------------------------------------------------------------- to what is answered here


def _sampled(one: _Asked, **fields: Any) -> dict[str, Any]:
    """Fields that all requests share."""
    options = one.options or Options()
    found = {name: getattr(options, name) for name in _OURS}
    return {**found, "max_tokens": options.num_predict, **fields}


def _thinking(think: bool | str | None) -> dict[str, Any]:
    """Ollama's `think`: whether, or how much."""
    return {"reasoning_effort": think} if isinstance(think, str) else {"enable_thinking": think}


def _chat(one: OllamaChat) -> ChatRequest:
    messages = [_message(message, i) for i, message in enumerate(one.messages or [])]
    return ChatRequest(
        messages=messages, tools=one.tools, response_format=_form(one.format), **_thinking(one.think), **_sampled(one)
    )


def _check(one: OllamaGenerate) -> None:
    if one.images and one.raw:
        raise invalid("a raw prompt has no place for pictures", "images")


def _prompt(one: OllamaGenerate) -> ChatRequest:
    messages = [Message("user", _content(one.prompt or "", one.images))]
    if one.system:
        messages.insert(0, Message("system", one.system))
    return ChatRequest(messages=messages, response_format=_form(one.format), **_thinking(one.think), **_sampled(one))


def _raw(one: OllamaGenerate) -> CompletionRequest:
    schema = {"type": "object"} if one.format == "json" else one.format or None
    limit = -1 if one.options is None or one.options.num_predict is None else one.options.num_predict
    return CompletionRequest(
        prompt=one.prompt or "", suffix=one.suffix, json_schema=schema, **_sampled(one) | {"max_tokens": limit}
    )


def _message(message: OllamaMessage, i: int) -> Message:
    if message.images and message.role != "user":
        raise invalid("pictures are read in a user's message", f"messages[{i}].images")
    calls = [
        ToolCall(
            FunctionCall(call.function.name, json.dumps(call.function.arguments or {}, ensure_ascii=False)), call.id
        )
        for call in message.tool_calls or []
    ]
    return Message(
        message.role,
        _content(message.content or "", message.images),
        name=message.tool_name,
        tool_calls=calls or None,
        reasoning_content=message.thinking,
    )


def _content(text: str, images: list[str] | None) -> str | list[Part]:
    """Pictures, which come as base64 alone, before the text."""
    if not images:
        return text
    pictures = [Part("image_url", image_url=f"data:image;base64,{image}") for image in images]
    return [*pictures, Part("text", text)]


def _form(form: Any) -> ResponseFormat | None:
    if isinstance(form, dict):
        return ResponseFormat("json_schema", JsonSchema(schema=form))
    return ResponseFormat("json_object") if form == "json" else None
