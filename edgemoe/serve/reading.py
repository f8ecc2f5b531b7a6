"""Text of an answer to events: thinking, calls and words told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..runtime.text.thinking import Piece, Thinking
from .call_reader import CallBegun, CallPart, CallReader, Item
from .calls import Call, Known
from .events import Arguments, Called, Calling, Event, Thoughts, Words
from .forms import Form
from .scoring import LogProb
from .timing import Timings

_PLAIN = Thinking()


@dataclass(frozen=True)
class Reading:
    """How an answer's text is read. form: of calls, None where no tools are offered. most: calls that are taken."""

    thinking: Thinking = _PLAIN
    form: Form | None = None
    tools: Sequence[Known] = ()
    most: int | None = None


class AnswerReader:
    """Of one choice. What comes with a token (log-probability, timings) waits for the text that it became."""

    def __init__(self, index: int, reading: Reading) -> None:
        self._index = index
        self._thinking = reading.thinking.reader()
        self._calls = CallReader(reading.form, reading.tools, most=reading.most) if reading.form else None
        self._in_channels = reading.form is not None and reading.form.channels
        self._waiting: tuple[LogProb, ...] = ()
        self._tokens: tuple[int, ...] = ()
        self._timings: Timings | None = None

    @property
    def n_call(self) -> int:
        return self._calls.n_call if self._calls else 0

    def feed(
        self, text: str, logprobs: tuple[LogProb, ...] = (), token: int = -1, timings: Timings | None = None
    ) -> Iterator[Event]:
        self._waiting += logprobs
        self._tokens += (token,) if token >= 0 else ()
        self._timings = timings or self._timings
        for piece in self._thinking.feed(text):
            yield from self._events(piece)

    def finish(self, logprobs: tuple[LogProb, ...] = ()) -> Iterator[Event]:
        self._waiting += logprobs
        for piece in self._thinking.finish():
            yield from self._events(piece)
        if self._calls:
            yield from self._told(self._calls.finish())
        if self._waiting or self._tokens:  # tokens whose text was a mark, or was cut off
            yield self._words("")

    def _events(self, piece: Piece) -> Iterator[Event]:
        if piece.kind == "thinking":
            logprobs, self._waiting = self._waiting, ()
            tokens, self._tokens = self._tokens, ()
            yield Thoughts(self._index, piece.text, logprobs, tokens)
        elif piece.kind == "call":
            # Where no tools were offered, a call that the model imagines is nobody's.
            if self._calls:
                yield from self._told(self._calls.told(piece.name, piece.text))
        elif self._calls and not self._in_channels:
            yield from self._told(self._calls.feed(piece.text))
        else:
            yield self._words(piece.text)

    def _told(self, found: Iterator[Item]) -> Iterator[Event]:
        assert self._calls
        for item in found:
            number = self._calls.n_begun - 1
            if isinstance(item, CallBegun):
                yield Calling(self._index, number, item.name)
            elif isinstance(item, CallPart):
                yield Arguments(self._index, number, item.text)
            elif isinstance(item, Call):
                yield Called(self._index, number, item)
            else:
                yield self._words(item)

    def _words(self, text: str) -> Words:
        logprobs, self._waiting = self._waiting, ()
        tokens, self._tokens = self._tokens, ()
        timings, self._timings = self._timings, None
        return Words(self._index, text, logprobs, tokens, timings)
