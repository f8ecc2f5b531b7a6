"""The routes. Everything here runs on the event loop and computes nothing: it checks, queues, waits and sends."""

from __future__ import annotations

import asyncio
import functools
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import _native
from .answers import Event, Used, chat_work, completion_work
from .failures import ApiError, of_engine
from .guard import MAX_BODY_BYTES, Guard, too_large
from .live import INTERVAL_S, LiveView, RequestCounts, metrics
from .openapi import document
from .prompts import Defaults
from .protocol import BudgetRequest, ChatRequest, CompletionRequest, EmbeddingRequest, decode
from .responses import CompletionBuilder, Frame, ModelCard, ModelList, chat_chunks, chat_completion
from .wire import SSE_DONE, ClientGone, EventStream, json_response, sse, unless_gone
from .worker import Job, Work, Worker

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}  # Starlette adds utf-8
_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
_CLIENT_GONE = 499

Log = Callable[[str], None]
Endpoint = Callable[[Request], Awaitable[Response]]


class Server:
    """What the routes share. log: receives a line for each request that was answered."""

    def __init__(self, worker: Worker, defaults: Defaults, log: Log | None = None) -> None:
        self.worker = worker
        self.defaults = defaults
        self.counts = RequestCounts()
        self.stopping = asyncio.Event()
        self._log = log
        self._fingerprint = f"fp_{zlib.crc32(_native.build_stamp().encode()):08x}"

    def app(self, host: str, api_key: str, origins: Sequence[str]) -> Starlette:
        routes = [
            self._route("/v1/chat/completions", self.chat, "POST"),
            self._route("/v1/completions", self.completions, "POST"),
            self._route("/v1/embeddings", self.embeddings, "POST"),
            self._route("/v1/models", self.models, "GET"),
            self._route("/v1/models/{name:path}", self.model, "GET"),
            self._route("/health", self.health, "GET"),
            self._route("/metrics", self.metrics, "GET"),
            self._route("/openapi.json", self.openapi, "GET"),
            self._route("/api/live", self.live, "GET"),
            self._route("/api/budget", self.budget, "POST"),
            *(self._route(path, functools.partial(_static, name), "GET") for path, name in _FILES.items()),
        ]
        guard = Middleware(Guard, host=host, api_key=api_key, origins=origins)
        return Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _http_error})

    def _route(self, path: str, endpoint: Endpoint, method: str) -> Route:
        async def answered(request: Request) -> Response:
            begin = time.monotonic()
            try:
                response = await endpoint(request)
            except ApiError as error:
                response = json_response(error.body(), error.status, error.headers)
            except ClientGone:
                self.counts.n_gone += 1
                response = Response(status_code=_CLIENT_GONE)
            self.counts.request(path, response.status_code)
            if self._log:
                took = time.monotonic() - begin
                self._log(f"{request.method} {request.url.path} {response.status_code} {took:.2f} s")
            return response

        return Route(path, answered, methods=[method])

    # ---------------------------------------------------------------- answers

    async def chat(self, request: Request) -> Response:
        asked: ChatRequest = decode(await _body(request), ChatRequest)
        self.worker.catalog.check(asked.model)
        frame = Frame("chatcmpl", asked.model, self._fingerprint)
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)

        def pieces(event: Event) -> bytes:
            return b"".join(sse(chunk) for chunk in chat_chunks(frame, event, with_usage=with_usage))

        work = chat_work(asked, self.defaults)
        if asked.stream:
            return await self._stream(request, asked.model, work, pieces)
        return json_response(chat_completion(frame, await self._collect(request, asked.model, work)))

    async def completions(self, request: Request) -> Response:
        asked: CompletionRequest = decode(await _body(request), CompletionRequest)
        self.worker.catalog.check(asked.model)
        builder = CompletionBuilder(Frame("cmpl", asked.model, self._fingerprint))
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)

        def pieces(event: Event) -> bytes:
            return b"".join(sse(piece) for piece in builder.pieces(event, with_usage=with_usage))

        work = completion_work(asked, self.defaults)
        if asked.stream:
            return await self._stream(request, asked.model, work, pieces)
        return json_response(builder.whole(await self._collect(request, asked.model, work)))

    async def embeddings(self, request: Request) -> Response:
        asked: EmbeddingRequest = decode(await _body(request), EmbeddingRequest)
        self.worker.catalog.check(asked.model)
        raise ApiError(
            400,
            f"`{asked.model}` makes no embeddings: it is a model that continues text",
            code="embeddings_not_supported",
            param="model",
        )

    async def _collect(self, request: Request, model: str, work: Work) -> list[Event]:
        """All events of an answer. Raises ApiError, ClientGone."""

        async def collect() -> list[Event]:
            return [event async for event in self._events(model, work)]

        return await unless_gone(request.receive, collect())

    async def _stream(self, request: Request, model: str, work: Work, pieces: Callable[[Event], bytes]) -> Response:
        """The events of an answer as they come. What is wrong with the request is found before the first."""
        events = self._events(model, work)
        first = await unless_gone(request.receive, anext(events))

        async def body() -> AsyncIterator[bytes]:
            done = False
            try:
                yield pieces(first)
                async for event in events:
                    data = pieces(event)
                    if data:
                        yield data
                yield SSE_DONE
                done = True
            except ApiError as error:
                done = True
                yield sse(error.body())
            finally:
                self.counts.n_gone += not done
                await events.aclose()

        return EventStream(body())

    async def _events(self, model: str, work: Work) -> AsyncGenerator[Event, None]:
        events = self.worker.events(Job(model, work))
        try:
            async for event in events:
                if isinstance(event, Used):
                    self._count(event)
                yield event
        finally:
            await events.aclose()

    def _count(self, used: Used) -> None:
        tokens = self.counts.tokens
        tokens["prompt"] += used.n_prompt
        tokens["cached"] += used.n_cached
        tokens["completion"] += used.n_completion

    # ---------------------------------------------------------------- about the server

    async def models(self, request: Request) -> Response:
        return json_response(ModelList([self._card(name) for name in self.worker.catalog.entries]))

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.worker.catalog.check(name)
        return json_response(self._card(name))

    def _card(self, name: str) -> ModelCard:
        entry, current = self.worker.catalog.entries[name], self.worker.catalog.current
        return ModelCard(name, entry.created, entry.n_ctx_train, bool(current and current[0] == name))

    async def health(self, request: Request) -> Response:
        loading = self.worker.catalog.loading
        return json_response({"status": "loading" if loading else "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(metrics(self.worker, self.counts), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        return json_response(document())

    async def live(self, request: Request) -> Response:
        view = LiveView(self.worker)

        async def body() -> AsyncIterator[bytes]:
            while not self.stopping.is_set():
                yield sse(view.snapshot())
                try:
                    await asyncio.wait_for(self.stopping.wait(), INTERVAL_S)
                except asyncio.TimeoutError:
                    continue

        return EventStream(body())

    async def budget(self, request: Request) -> Response:
        asked: BudgetRequest = decode(await _body(request), BudgetRequest)
        try:
            await asyncio.to_thread(self.worker.catalog.set_memory, asked.memory)
        except Exception as error:
            raise of_engine(error) from None
        return json_response(LiveView(self.worker).snapshot())


_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}


async def _static(name: str, request: Request) -> Response:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
    return Response((_PAGE / name).read_bytes(), headers=headers, media_type=_TYPES[Path(name).suffix])


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise too_large()
    return bytes(body)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    path = f"`{request.method} {request.url.path:.100}`"
    known = {404: f"there is no {path} here", 405: f"{path} is not possible"}
    message = known.get(error.status_code, str(error.detail))
    return json_response(ApiError(error.status_code, message).body(), error.status_code, error.headers)
