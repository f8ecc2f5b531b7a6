"""Log-probabilities of tokens: of an answer's as they come, and of a prompt's, in OpenAI's sense.

They are the model's own, before temperature and filters.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from ..runtime.engine.engine import Engine
from ..runtime.text.stream import Step


@dataclass(frozen=True)
class LogProb:
    """A token with its log-probability, and the likeliest ones, itself among them.

    logprob: None for a prompt's first token. offset: where its text begins in the answer, in characters.
    """

    piece: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()
    offset: int = 0
    token: int = -1


def scored(engine: Engine, tokens: Sequence[int], n_top: int) -> tuple[LogProb, ...]:
    """Every token of a prompt, given those before it. Computes all of it."""
    found: list[LogProb] = []
    offsets = _Offsets()
    for step in engine.scores(tokens, n_top):
        text = engine.piece(step.token) if found or step.piece else b""
        found.append(_of(engine, step, text, offsets.feed(step.piece)))
    return tuple(found)


class Told:
    """The log-probabilities of an answer, each told with its text: what a stop text cuts off is not told.

    n_top: None where none are asked for.
    """

    def __init__(self, engine: Engine, n_top: int | None) -> None:
        self._engine = engine
        self._n_top = n_top
        self._offsets = _Offsets()
        self._n_char = 0  # of text that is out
        self._held: list[tuple[int, LogProb]] = []  # with where their texts end

    def feed(self, step: Step) -> tuple[LogProb, ...]:
        if self._n_top is None:
            return ()
        self._n_char += len(step.text)
        if step.token >= 0:
            begin = self._offsets.feed(step.piece)
            text = step.piece or self._engine.piece(step.token)  # a control token has a name, and no text
            self._held.append((self._offsets.n_char, _of(self._engine, step, text, begin)))
        n = next((i for i, (end, _) in enumerate(self._held) if end > self._n_char), len(self._held))
        ready, self._held = self._held[:n], self._held[n:]
        return tuple(one for _, one in ready)

    def finish(self, *, stopped: bool) -> tuple[LogProb, ...]:
        """What is left. stopped: a stop text cut the answer: of its own tokens none is told."""
        return tuple(one for _, one in self._held if not stopped or one.offset < self._n_char)


class _Offsets:
    """Where tokens begin in a text, in characters; bytes of half a character count with the token that ends it."""

    def __init__(self) -> None:
        self.n_char = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes) -> int:
        begin = self.n_char
        self.n_char += len(self._decoder.decode(piece))
        return begin


def _of(engine: Engine, step: Step, text: bytes, offset: int) -> LogProb:
    """A step's log-probability; the token itself is always among the likeliest that are told."""
    top = [(engine.piece(token), value) for token, value in step.top]
    if step.top and step.logprob is not None and all(token != step.token for token, _ in step.top):
        top.append((text, step.logprob))
    return LogProb(text, step.logprob, tuple(top), offset, step.token)
