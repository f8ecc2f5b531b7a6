"""OpenAI's own endpoints: chat and text completions, models, and the refusal of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .answers import chat_work, completion_work, counting_work
from .catalog import Catalog
from .events import Event
from .failures import ApiError
from .flow import Flow
from .prompts import Defaults
from .protocol import ChatRequest, CompletionRequest, EmbeddingRequest, Sampled
from .responses import (
    ChatChunk,
    Completion,
    CompletionBuilder,
    Frame,
    ModelCard,
    ModelList,
    ModelMeta,
    PromptProgress,
    chat_chunks,
    chat_completion,
)
from .wire import SSE_DONE, SSE_KIND, SSE_WAITING, json_response, sse
from .worker import Work


class _Events:
    """What OpenAI's two streams have in common."""

    kind = SSE_KIND

    def __init__(self, frame: Frame, *, with_usage: bool) -> None:
        self._frame = frame
        self._with_usage = with_usage

    def end(self) -> bytes:
        return SSE_DONE

    def failure(self, error: ApiError) -> bytes:
        return sse(error.body())

    def ping(self) -> bytes:
        return SSE_WAITING


class ChatShape(_Events):
    def pieces(self, event: Event) -> bytes:
        return b"".join(sse(chunk) for chunk in chat_chunks(self._frame, event, with_usage=self._with_usage))

    def whole(self, events: list[Event]) -> Any:
        return chat_completion(self._frame, events)

    def progress(self, progress: PromptProgress) -> bytes:
        frame = self._frame
        return sse(ChatChunk(frame.id, frame.created, frame.model, [], frame.fingerprint, prompt_progress=progress))


class CompletionShape(_Events):
    def __init__(self, frame: Frame, *, with_usage: bool) -> None:
        super().__init__(frame, with_usage=with_usage)
        self._builder = CompletionBuilder(frame)

    def pieces(self, event: Event) -> bytes:
        return b"".join(sse(piece) for piece in self._builder.pieces(event, with_usage=self._with_usage))

    def whole(self, events: list[Event]) -> Any:
        return self._builder.whole(events)

    def progress(self, progress: PromptProgress) -> bytes:
        frame = self._frame
        return sse(Completion(frame.id, frame.created, frame.model, [], frame.fingerprint, prompt_progress=progress))


class OpenAI:
    """fingerprint: says which build answers."""

    def __init__(self, flow: Flow, defaults: Defaults, fingerprint: str) -> None:
        self._flow = flow
        self._defaults = defaults
        self._fingerprint = fingerprint

    @property
    def _catalog(self) -> Catalog:
        return self._flow.worker.catalog

    async def chat(self, request: Request) -> Response:
        return await self._answered(request, ChatRequest, "chatcmpl", ChatShape, chat_work)

    async def completions(self, request: Request) -> Response:
        return await self._answered(request, CompletionRequest, "cmpl", CompletionShape, completion_work)

    async def _answered(
        self,
        request: Request,
        kind: type[ChatRequest | CompletionRequest],
        prefix: str,
        shape_of: type[ChatShape | CompletionShape],
        work_of: Callable[[Any, Defaults], Work],
    ) -> Response:
        """prefix: of the answer's id."""
        asked = await self._flow.asked(request, kind)
        how = _How.of(asked.value)
        model = self._catalog.named(how.model)
        shape = shape_of(Frame(prefix, model, self._fingerprint), with_usage=how.with_usage)
        work = self._flow.later(asked, lambda one: work_of(one, self._defaults))
        return await self._flow.answer(
            request, model, work, shape, stream=how.stream, progress=how.progress, headers=asked.headers
        )

    async def input_tokens(self, request: Request) -> Response:
        n_token, headers = await self._flow.result(request, ChatRequest, counting_work)
        return json_response({"input_tokens": n_token}, 200, headers)

    async def embeddings(self, request: Request) -> Response:
        asked = await self._flow.asked(request, EmbeddingRequest)
        model = self._catalog.named(asked.value.model)
        raise ApiError(
            400,
            f"`{model}` makes no embeddings: it is a model that continues text",
            code="embeddings_not_supported",
            param="model",
        )

    async def models(self, request: Request) -> Response:
        return json_response(ModelList([self._card(name) for name in self._catalog.entries]))

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._catalog.check(name)
        return json_response(self._card(name))

    def _card(self, name: str) -> ModelCard:
        entry, current = self._catalog.entries[name], self._catalog.current
        loaded = bool(current and current[0] == name)
        return ModelCard(
            name, entry.created, entry.n_ctx, entry.n_ctx_train, loaded, entry.n_ctx,
            ModelMeta(entry.n_ctx_train, entry.n_ctx, entry.size_bytes),
        )  # fmt: skip


@dataclass(frozen=True)
class _How:
    """What is needed of a request while it waits, without its texts: they wait as the bytes that came."""

    model: str | None
    stream: bool
    progress: bool
    with_usage: bool

    @classmethod
    def of(cls, value: Sampled) -> _How:
        options = value.stream_options
        usage = bool(options and options.include_usage)
        return cls(value.model, bool(value.stream), bool(value.return_progress), usage)
