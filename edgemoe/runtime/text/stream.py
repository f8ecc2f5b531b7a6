"""Turn token bytes into text as it arrives, natively: whole characters only, and never past a stop string."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from ... import _native
from ...errors import UsageError


@dataclass(frozen=True)
class Step:
    """One token of an answer.

    token: -1 for the text that was still held back when the answer ended. piece: its bytes, maybe part of a character.
    text: what is certain now, "" if nothing is. logprob: of the token, natural, by the model itself; top: (token,
    logprob) of the likeliest ones; None and () unless they were asked for.
    """

    token: int
    piece: bytes
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class TextStream:
    """Bytes in, text out. Text that may be the beginning of a stop string is held back until it is clear.

    stopped: a stop string was found; what came before it has been returned, it and what follows are dropped.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if any(not text for text in stop):
            raise UsageError("an empty stop string would end every answer at once")
        self._handle = _native.stream_open(stop)
        self._finalizer = weakref.finalize(self, _native.stream_close, self._handle)

    @property
    def stopped(self) -> bool:
        return _native.stream_stopped(self._handle)

    def feed(self, piece: bytes) -> str:
        """The text that is certain after one more piece, "" if none is."""
        return _native.stream_feed(self._handle, piece)

    def finish(self) -> str:
        """What was held back; half a character becomes U+FFFD."""
        return _native.stream_finish(self._handle)
