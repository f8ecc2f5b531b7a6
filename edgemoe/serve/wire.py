"""JSON bodies and event streams, over ASGI, with a client that may go away at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

PING_S = 5.0
"""Clients and proxies give up on a stream in which nothing comes: some after 15 s."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    content = b"" if status == 204 else msgspec.json.encode(body)
    return Response(content, status, dict(headers or {}), media_type="application/json")


def sse(data: Any, event: str = "") -> bytes:
    """One server-sent event. event: its name, for protocols that name them."""
    named = b"event: " + event.encode() + b"\n" if event else b""
    return named + b"data: " + msgspec.json.encode(data) + b"\n\n"


SSE_KIND = "text/event-stream; charset=utf-8"
SSE_DONE = b"data: [DONE]\n\n"
SSE_WAITING = b": waiting\n\n"  # a comment: says that the server lives


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes. Raises ClientGone then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await ended(task, gone)


class EventStream(Response):
    """Sends what an iterator gives as it comes, and every few seconds while nothing does what `ping` gives.

    kind: the media type. A ping of b"" sends nothing.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        *,
        ping: Callable[[], bytes] | None = None,
        every_s: float = PING_S,
        kind: str = SSE_KIND,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self.headers["content-type"] = kind
        self._pieces = pieces
        self._ping = ping or (lambda: SSE_WAITING)
        self._every_s = every_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        task, gone = asyncio.ensure_future(self._send_all(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        except OSError:  # the connection broke while something was sent
            pass
        finally:
            await ended(task, gone)

    async def _send_all(self, send: Send) -> None:
        pieces = self._pieces
        waiting: asyncio.Future[bytes] = asyncio.ensure_future(following(pieces))
        try:
            while True:
                await asyncio.wait({waiting}, timeout=self._every_s)
                if not waiting.done():
                    if ping := self._ping():
                        await send({"type": "http.response.body", "body": ping, "more_body": True})
                    continue
                try:
                    piece = waiting.result()
                except StopAsyncIteration:
                    break
                waiting = asyncio.ensure_future(following(pieces))
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await ended(waiting)


async def following(pieces: AsyncIterator[T]) -> T:
    """The next one, for a task."""
    # A coroutine of its own: asyncio takes no StopAsyncIteration for the result of a task's own function otherwise.
    return await pieces.__anext__()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
