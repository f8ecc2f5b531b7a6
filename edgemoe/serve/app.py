"""The routes. Everything here runs on the event loop and computes nothing: it checks, queues, waits and sends."""

from __future__ import annotations

import asyncio
import functools
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import _native
from . import anthropic, anthropic_shape, ollama, ollama_shape
from .failures import ApiError, of_engine
from .flow import Flow
from .guard import PAGE, Access, Guard
from .intake import Front, Intake, Log, drained
from .live import INTERVAL_S, LiveView, RequestCounts, metrics
from .native_api import Native
from .openai_api import OpenAI
from .openapi import document
from .prompts import Defaults
from .protocol import BudgetRequest
from .responses_api import Responses
from .wire import ClientGone, EventStream, json_response, sse
from .worker import Worker

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}  # Starlette adds utf-8
_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
_CLIENT_GONE = 499

Endpoint = Callable[[Request], Awaitable[Response]]
Failure = Callable[[ApiError], Any]
"""How a protocol says what went wrong."""


SPELLINGS = {
    "/chat/completions": "/v1/chat/completions",
    "/chat/completions/input_tokens": "/v1/chat/completions/input_tokens",
    "/completions": "/completion",
    "/responses": "/v1/responses",
    "/responses/input_tokens": "/v1/responses/input_tokens",
    "/models": "/v1/models",
    "/embedding": "/v1/embeddings",
    "/embeddings": "/v1/embeddings",
    "/v1/health": "/health",
}
"""Other names that llama.cpp's server has for the same."""


class Server:
    """What the routes share. log: receives a line for each request. strict: unknown parameters are refused."""

    def __init__(self, worker: Worker, defaults: Defaults, log: Log | None = None, *, strict: bool = False) -> None:
        self.worker = worker
        self.counts = RequestCounts()
        self.stopping = asyncio.Event()
        self._log = log
        self._strict = strict
        self._intake = Intake(worker.catalog.budget_bytes)
        self._flow = Flow(worker, self.counts, self._intake, strict=strict)
        fingerprint = f"fp_{zlib.crc32(_native.build_stamp().encode()):08x}"
        self._openai = OpenAI(self._flow, defaults, fingerprint)
        self._responses = Responses(self._flow, defaults)
        self._anthropic = anthropic.Anthropic(self._flow, defaults)
        self._ollama = ollama.Ollama(self._flow, defaults)
        self._native = Native(self._flow, defaults)

    def app(self, access: Access) -> Starlette:
        routes = [
            *self._openai_routes(),
            *self._other_routes(),
            self._route("/health", self.health, "GET"),
            self._route("/metrics", self.metrics, "GET"),
            self._route("/openapi.json", self.openapi, "GET"),
            self._route("/api/live", self.live, "GET"),
            self._route("/api/budget", self.budget, "POST"),
            *(self._route(path, functools.partial(_static, name), "GET") for path, name in PAGE.items()),
        ]
        known = {route.path: route for route in routes}
        routes += [Route(other, known[path].endpoint, methods=known[path].methods) for other, path in SPELLINGS.items()]
        middleware = [
            Middleware(Front, intake=self._intake, log=self._log),
            Middleware(Guard, access=access),
        ]
        return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _http_error})

    def _openai_routes(self) -> list[Route]:
        openai = self._openai
        return [
            self._route("/v1/chat/completions", openai.chat, "POST"),
            self._route("/v1/chat/completions/input_tokens", openai.input_tokens, "POST"),
            self._route("/v1/completions", openai.completions, "POST"),
            self._route("/v1/responses", self._responses.create, "POST"),
            self._route("/v1/responses/input_tokens", self._responses.input_tokens, "POST"),
            self._route("/v1/embeddings", openai.embeddings, "POST"),
            self._route("/v1/models", openai.models, "GET"),
            self._route("/v1/models/{name:path}", openai.model, "GET"),
        ]

    def _other_routes(self) -> list[Route]:
        """Anthropic's, Ollama's and llama.cpp's."""
        others, lines, own = self._anthropic, self._ollama, self._native
        return [
            self._route("/v1/messages", others.messages, "POST", anthropic_shape.failure),
            self._route("/v1/messages/count_tokens", others.count_tokens, "POST", anthropic_shape.failure),
            self._route("/api/chat", lines.chat, "POST", ollama_shape.failure),
            self._route("/api/generate", lines.generate, "POST", ollama_shape.failure),
            self._route("/api/tags", lines.tags, "GET", ollama_shape.failure),
            self._route("/api/show", lines.show, "POST", ollama_shape.failure),
            self._route("/api/version", lines.version, "GET", ollama_shape.failure),
            self._route("/api/ps", lines.ps, "GET", ollama_shape.failure),
            self._route("/completion", own.completion, "POST"),
            self._route("/infill", own.infill, "POST"),
            self._route("/tokenize", own.tokenize, "POST"),
            self._route("/detokenize", own.detokenize, "POST"),
            self._route("/apply-template", own.apply_template, "POST"),
            self._route("/props", own.props, "GET"),
            self._route("/slots", own.slots, "GET"),
        ]

    def _route(self, path: str, endpoint: Endpoint, method: str, failure: Failure = ApiError.body) -> Route:
        async def answered(request: Request) -> Response:
            try:
                response = await endpoint(request)
            except ApiError as error:
                response = json_response(failure(error), error.status, error.headers)
            except ClientGone:
                self.counts.n_gone += 1
                response = Response(status_code=_CLIENT_GONE)
            self.counts.request(path, response.status_code)
            return response

        return Route(path, answered, methods=[method])

    # ---------------------------------------------------------------- about the server

    async def health(self, request: Request) -> Response:
        loading = self.worker.catalog.loading
        return json_response({"status": "loading" if loading else "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(metrics(self.worker, self.counts), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        return json_response(document(list(self.worker.catalog.entries), strict=self._strict))

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
        asked = await self._flow.asked(request, BudgetRequest)
        try:
            await asyncio.to_thread(self.worker.catalog.set_memory, asked.value.memory)
        except Exception as error:
            raise of_engine(error) from None
        return json_response(LiveView(self.worker).snapshot())


async def _static(name: str, request: Request) -> Response:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
    return Response((_PAGE / name).read_bytes(), headers=headers, media_type=_TYPES[Path(name).suffix])


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    await drained(request.receive)
    path = f"`{request.method} {request.url.path:.100}`"
    known = {404: f"there is no {path} here", 405: f"{path} is not possible"}
    message = known.get(error.status_code, str(error.detail))
    return json_response(ApiError(error.status_code, message).body(), error.status_code, error.headers)
