"""Turn token bytes into text as it arrives: whole characters only, and never past a stop string. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

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
        self.stopped = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, piece: bytes) -> str:
        """The text that is certain after one more piece, "" if none is."""
        return self._release(self._decoder.decode(piece), final=False)

    def finish(self) -> str:
        """What was held back; half a character becomes U+FFFD."""
        return self._release(self._decoder.decode(b"", True), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
