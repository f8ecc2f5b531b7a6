"""From a request to its answer: read, decode, queue, and send what comes of it, whole or as it comes.

What differs between the protocols (OpenAI's, Anthropic's, Ollama's, llama.cpp's) is a `Shape`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from . import tolerance
from .events import Event, Scored, Started, Used, Words
from .failures import ApiError, of_decoding, of_engine
from .intake import Intake, note, parsed_bytes
from .live import RequestCounts
from .protocol import decode
from .responses import PromptProgress
from .wire import PING_S, EventStream, ended, following, json_response, unless_gone
from .worker import Job, Work, Worker

_PATIENCE_S = 2.0  # in which what is wrong with a streamed request is said with a status; then the stream begins
_PROGRESS_S = 0.5
_FREE_BYTES = 512 * 1024  # what decoding may take beside the plan
_MAX_TOLD = 200_000  # log-probabilities in an answer that is not streamed

Build = Callable[[], Work]


class Shape(Protocol):
    """How a protocol says what happens. kind: the media type of its streams."""

    kind: str

    def pieces(self, event: Event) -> bytes:
        """An event in a stream; b"" for what is not told."""

    def end(self) -> bytes:
        """What a stream ends with."""

    def failure(self, error: ApiError) -> bytes:
        """What ends a stream that fails."""

    def whole(self, events: list[Event]) -> Any:
        """All of an answer as one object."""

    def ping(self) -> bytes:
        """What tells a client that the server lives."""

    def progress(self, progress: PromptProgress) -> bytes:
        """How much of the prompt is computed, for those who asked to be told; b"" where a protocol has no word."""


@dataclass
class Asked:
    """A request that was decoded. headers: what the answer says of it."""

    value: Any
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Flow:
    """What the endpoints share. strict: unknown parameters are refused."""

    def __init__(self, worker: Worker, counts: RequestCounts, intake: Intake, *, strict: bool) -> None:
        self.worker = worker
        self.counts = counts
        self._intake = intake
        self._strict = strict

    async def asked(self, request: Request, kind: type[msgspec.Struct]) -> Asked:
        """The body of a request. Raises ApiError, ClientGone."""
        body = await self._intake.body(request)
        with self._room(body):
            value = decode(body, kind)
            names = tolerance.checked(body, kind, strict=self._strict)
        if names:
            note(request, f"ignored {', '.join(names)!a:.300}")
        return Asked(value, body, tolerance.header(names))

    @contextlib.contextmanager
    def _room(self, body: bytes) -> Any:
        """For what a body decodes to. Raises ApiError 413 where there is none."""
        n_bytes, loaded = parsed_bytes(body), self.worker.catalog.current
        if n_bytes <= _FREE_BYTES or not loaded:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(loaded[1].room(n_bytes, "reading the request"))
            except Exception as error:
                raise ApiError(413, of_engine(error).message, code="body_too_large") from None
            yield

    def later(self, asked: Asked, build: Callable[[Any], Work]) -> Work:
        """Work that decodes the body again when its turn comes: what waits is held as the bytes that came.

        What can be seen without a model is found now; then what was decoded is let go. Raises ApiError.
        """
        body, kind = asked.body, type(asked.value)
        try:
            build(asked.value)
        except msgspec.ValidationError as error:
            raise of_decoding(error) from None
        asked.value = None

        def work(engine: Any) -> Any:
            with self._room(body):
                made = build(decode(body, kind))
            return made(engine)

        return work

    async def answer(
        self,
        request: Request,
        model: str,
        work: Work,
        shape: Shape,
        *,
        stream: bool,
        progress: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Raises ApiError, ClientGone."""
        if stream:
            return await self._stream(request, model, work, shape, progress=progress, headers=headers)
        events = await unless_gone(request.receive, self._collect(model, work))
        return json_response(shape.whole(events), 200, {**(headers or {}), **_noted(request, events[0])})

    async def results(self, request: Request, model: str, work: Work) -> list[Any]:
        """What work yields that is no answer: tokens, texts. Raises ApiError, ClientGone."""

        async def collect() -> list[Any]:
            return [event async for event in self.worker.events(Job(model, work))]

        return await unless_gone(request.receive, collect())

    async def result(
        self, request: Request, kind: type[msgspec.Struct], build: Callable[[Any], Work]
    ) -> tuple[Any, dict[str, str]]:
        """The one thing that the work of a request yields, and headers. Raises ApiError, ClientGone."""
        asked = await self.asked(request, kind)
        model = self.worker.catalog.named(asked.value.model)
        (found,) = await self.results(request, model, self.later(asked, build))
        return found, asked.headers

    async def _collect(self, model: str, work: Work) -> list[Event]:
        events: list[Event] = []
        n_told = 0
        async for event in self._events(Job(model, work)):
            events.append(event)
            if isinstance(event, Words | Scored):
                n_told += sum(1 + len(one.top) for one in event.logprobs)
            if n_told > _MAX_TOLD:
                raise ApiError(400, f"more than {_MAX_TOLD:,} log-probabilities in one answer: ask for a stream")
        return events

    async def _stream(
        self,
        request: Request,
        model: str,
        work: Work,
        shape: Shape,
        *,
        progress: bool,
        headers: Mapping[str, str] | None,
    ) -> Response:
        """The events of an answer as they come. What is wrong with the request is found before the first.

        Unless that takes long, behind other requests: then the stream begins, and what is wrong is said in it.
        """
        job = Job(model, work)
        events = self._events(job)
        first = asyncio.ensure_future(following(events))
        try:
            await unless_gone(request.receive, asyncio.wait({first}, timeout=_PATIENCE_S))
            if first.done():
                headers = {**(headers or {}), **_noted(request, first.result())}
        except BaseException:
            await ended(first)
            await events.aclose()
            raise
        told = _Told(self.worker, job, shape, progress=progress)

        async def body() -> AsyncIterator[bytes]:
            done = False
            try:
                yield told.pieces(await first)
                async for event in events:
                    yield told.pieces(event)
                yield shape.end()
                done = True
            except ApiError as error:
                done = True
                yield shape.failure(error)
            finally:
                self.counts.n_gone += not done
                await ended(first)
                await events.aclose()

        every_s = _PROGRESS_S if progress else PING_S
        return EventStream(body(), ping=told.ping, every_s=every_s, kind=shape.kind, headers=headers)

    async def _events(self, job: Job) -> AsyncGenerator[Event, None]:
        events = self.worker.events(job)
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


class _Told:
    """What a stream has said so far, and what it says while nothing comes."""

    def __init__(self, worker: Worker, job: Job, shape: Shape, *, progress: bool) -> None:
        self._worker = worker
        self._job = job
        self._shape = shape
        self._progress = progress
        self._n_prompt = 0
        self._begin = self._pinged = time.monotonic()
        self._last = (-1, -1)

    def pieces(self, event: Event) -> bytes:
        if isinstance(event, Started):
            self._n_prompt, self._begin = event.n_prompt, time.monotonic()
        elif self._n_prompt:
            done = self._computed() if self._progress else b""
            self._n_prompt = 0
            return done + self._shape.pieces(event)
        return self._shape.pieces(event)

    def ping(self) -> bytes:
        found = self._worker.progress(self._job) if self._n_prompt and self._progress else None
        if found and found[1] <= found[0] <= self._n_prompt and (said := self._at(*found)):
            self._pinged = time.monotonic()
            return said
        if time.monotonic() - self._pinged < PING_S - 0.1:
            return b""
        self._pinged = time.monotonic()
        return self._shape.ping()

    def _computed(self) -> bytes:
        """The first and the last of what is told of a prompt, also of one that took no time."""
        found = self._worker.progress(self._job)
        n_cached = self._last[1] if self._last[1] >= 0 else min(found[1], self._n_prompt) if found else 0
        first = b"" if self._last[1] >= 0 else self._at(n_cached, n_cached)
        return first + self._at(self._n_prompt, n_cached)

    def _at(self, n_computed: int, n_cached: int) -> bytes:
        """b"" where the same was told."""
        if self._last == (n_computed, n_cached):
            return b""
        self._last = (n_computed, n_cached)
        ms = int((time.monotonic() - self._begin) * 1000)
        return self._shape.progress(PromptProgress(self._n_prompt, n_cached, n_computed, ms))


def _noted(request: Request, event: Event) -> dict[str, str]:
    """What no grammar holds of a request's schemas: in the log, and in a header of the answer."""
    notes = event.notes if isinstance(event, Started) else ()
    for text in notes:
        note(request, text)
    plain = "; ".join(notes)[:1000].encode("ascii", "replace").decode()
    return {"X-EdgeMoE-Notes": re.sub(r"[^ -~]", " ", plain)} if plain else {}
