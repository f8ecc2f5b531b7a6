"""What requests bring: their bodies, counted from the first byte to the end of the answer, bounded and in time.

A request that waits is held as the bytes that came, not as what they decode to, which can be forty times as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import _native
from ..units import MIB
from .failures import ApiError
from .wire import ClientGone

MAX_BODY_BYTES = 1 << 20
_SMALL_BYTES = 64 * 1024  # of a body, for which a part of the room is kept: large ones that do not come end no chat
_HELD = "edgemoe.held"
_SILENT_S = 10.0  # between two pieces of a body
_BODY_S = 60.0  # for a whole one
_DRAIN_S, _DRAIN_BYTES = 1.0, 4 << 20  # of a body that is refused, so that its sender gets to read why
_RETRY_AFTER_S = 5
# Every browser sends one of these with a body that a page of another site gives it.
_PAGES = ("origin", "referer", "sec-fetch-site", "sec-fetch-mode", "cookie")
_TRIM_BYTES = 2 * MIB  # held at once, after which the allocator is asked to give back what it keeps

Log = Callable[[str], None]


class Intake:
    """Bytes of bodies that are held now. budget: of the process, in bytes; a small part of it may be bodies."""

    def __init__(self, budget: Callable[[], int]) -> None:
        self.n_bytes = 0
        self._peak = 0
        self._budget = budget

    @property
    def max_bytes(self) -> int:
        return max(2 * MIB, min(32 * MIB, self._budget() // 32))

    async def body(self, request: Request) -> bytes:
        """A JSON body. Raises ApiError, ClientGone."""
        try:
            _check(request.headers)
            return await self._read(request)
        except ApiError:
            await drained(request.receive)
            raise

    async def _read(self, request: Request) -> bytes:
        body, end = bytearray(), time.monotonic() + _BODY_S
        length = request.headers.get("content-length", "0")
        reserved = int(length) if length.isdigit() else 0
        self._hold(request.scope, reserved)  # at once: who declares much finds out before it is sent
        while True:
            left = max(0.001, min(_SILENT_S, end - time.monotonic()))
            try:
                message = await asyncio.wait_for(request.receive(), left)
            except asyncio.TimeoutError:
                raise ApiError(
                    408,
                    f"the body did not come in time: {len(body):,} bytes are here",
                    code="body_too_slow",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise too_large()
            if len(body) > reserved:
                self._hold(request.scope, len(body) - reserved)
                reserved = len(body)
            if not message.get("more_body"):
                return bytes(body)

    def _hold(self, scope: Scope, n_bytes: int) -> None:
        small = scope.get(_HELD, 0) + n_bytes <= _SMALL_BYTES
        room = self.max_bytes if small else self.max_bytes * 3 // 4
        if self.n_bytes + n_bytes > room:
            raise ApiError(
                503,
                f"the bodies of other requests take {self.n_bytes:,} bytes, there is room for {room:,}",
                code="too_many_bytes",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
            )
        self.n_bytes += n_bytes
        self._peak = max(self._peak, self.n_bytes)
        scope[_HELD] = scope.get(_HELD, 0) + n_bytes

    def release(self, scope: Scope) -> None:
        """The request has been answered."""
        held = scope.pop(_HELD, 0)
        self.n_bytes -= held
        if held and not self.n_bytes and self._peak > _TRIM_BYTES:
            self._peak = 0
            _native.trim_heap()


class Front:
    """The outermost ASGI middleware: gives back what a request held, and tells of it in the log."""

    def __init__(self, app: ASGIApp, *, intake: Intake, log: Log | None) -> None:
        self._app = app
        self._intake = intake
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin, status = time.monotonic(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._intake.release(scope)
            if self._log and scope["type"] == "http":
                took = time.monotonic() - begin
                path = scope["path"].encode("unicode_escape").decode()
                notes = "".join(f", {note}" for note in scope.get("edgemoe.notes", ()))
                self._log(f"{scope['method']} {path:.200} {status or 499} {took:.2f} s{notes}")


def note(request: Request, text: str) -> None:
    """Something for the log's line of this request."""
    request.scope.setdefault("edgemoe.notes", []).append(text)


def parsed_bytes(body: bytes) -> int:
    """What decoding a body may take at most: texts in the widest form, objects, lists, and what is in them."""
    marks = 250 * body.count(b"{") + 90 * body.count(b"[") + 40 * body.count(b",") + 25 * body.count(b'"')
    return 4 * len(body) + marks


def too_large() -> ApiError:
    return ApiError(413, f"a body of more than {MAX_BODY_BYTES:,} bytes", code="body_too_large")


def _check(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    # Nobody's page: some programs do not say what they send, curl says that it is a form.
    program = kind in ("", "application/x-www-form-urlencoded") and not any(name in headers for name in _PAGES)
    if kind != "application/json" and not program:
        raise ApiError(415, f"the body must be `application/json`, not `{kind:.60}`", code="unsupported_media_type")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise too_large()


async def drained(receive: Receive) -> None:
    """Throw away what is left of a body: a connection that is closed with bytes unread loses the answer."""

    async def drain() -> None:
        n_bytes = 0
        while n_bytes < _DRAIN_BYTES:
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(drain(), _DRAIN_S)
