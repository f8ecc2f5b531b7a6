"""Connections that are bounded in number, and clients that are too slow: what a stranger can make the server hold.

uvicorn bounds neither: a connection that sends half a head, or reads nothing of its answer, would be held for ever.
"""

from __future__ import annotations

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 128
HEAD_BYTES = 32 * 1024  # of a request's head, while it is incomplete
_READ_BYTES = 32 * 1024  # at once
_HEAD_S = 10.0  # from a request's first byte, or from the connection's begin, to the end of its head
_STALLED_S = 60.0  # without reading anything of what is sent
_REFUSED_S = 1.0  # for a refused client to read why
_MAX_REFUSED = 64  # told at once; more are cut off without a word

_FULL = b'{"error":{"message":"too many connections","type":"server_error","param":null,"code":"too_many_connections"}}'
_LATE = (
    b'{"error":{"message":"the request did not come in time","type":"invalid_request_error","param":null,"code":null}}'
)


def _plain(status: bytes, body: bytes, more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%sConnection: close\r\n\r\n"
    return head % (status, len(body), more) + body


class Connection(H11Protocol):
    """One client's connection."""

    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        plain = cast(asyncio.Transport, transport)
        if len(self.connections) >= MAX_CONNECTIONS:
            _Refused.take(plain)
            return
        super().connection_made(plain)
        # What is written waits for a client that does not read: little, then the writer waits. What is read comes in
        # pieces that the allocator gives again: pieces of 256 KiB, asyncio's, leave holes.
        plain.set_write_buffer_limits(high=64 * 1024)
        if hasattr(plain, "max_size"):
            plain.max_size = _READ_BYTES
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_timer(None)
        self._set_stalled(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_stalled(self.loop.call_later(_STALLED_S, self.transport.abort))

    def resume_writing(self) -> None:
        super().resume_writing()
        self._set_stalled(None)

    def _watch(self) -> None:
        """A head that has begun, or the first one, must be whole in time; between requests uvicorn's timer runs."""
        waits = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if waits and self.timeout_keep_alive_task is None:
            if self._timer is None:
                self._set_timer(self.loop.call_later(_HEAD_S, self._late))
        else:
            self._set_timer(None)

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_plain(b"408 Request Timeout", _LATE))
            self.transport.close()

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = timer

    def _set_stalled(self, timer: asyncio.TimerHandle | None) -> None:
        if self._stalled:
            self._stalled.cancel()
        self._stalled = timer


class _Refused(asyncio.Protocol):
    """Says 503 to a client that is one too many, and throws away what it sends until it has gone."""

    n = 0

    def __init__(self, transport: asyncio.Transport) -> None:
        self._timer = asyncio.get_running_loop().call_later(_REFUSED_S, transport.abort)

    @classmethod
    def take(cls, transport: asyncio.Transport) -> None:
        if cls.n >= _MAX_REFUSED:
            transport.abort()
            transport.set_protocol(asyncio.Protocol())
            return
        cls.n += 1
        transport.set_protocol(cls(transport))
        transport.write(_plain(b"503 Service Unavailable", _FULL, b"Retry-After: 5\r\n"))
        transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        _Refused.n -= 1
