"""A text in windows, as llama.cpp's perplexity tool cuts it, and a model's log-probabilities over them.

Windows of n_ctx tokens follow each other without overlap; each begins from an empty context, its first token replaced
by BOS where the model wants one; the second half is scored, tokens n_ctx/2 + 1 to n_ctx - 1, given all before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

N_OUTPUTS = 128
"""Rows of logits kept at once: pieces of the second half. More take memory, fewer compute slower."""
_CHARS_PER_TOKEN = 16  # more than any text takes; the tokenizer's memory grows with the text


@dataclass(frozen=True)
class Windows:
    """A text to score. tokens: of all windows, without the BOS that replaces each window's first. bos: -1 for none.

    n_given: tokens of a window that are not scored. A window's predictions are scored from the token after these on.
    """

    tokens: tuple[int, ...]
    n_ctx: int
    bos: int
    n_given: int

    def __len__(self) -> int:
        return len(self.tokens) // self.n_ctx

    @property
    def n_scored(self) -> int:
        """Tokens scored in each window."""
        return self.n_ctx - 1 - self.n_given

    def window(self, i: int) -> tuple[int, ...]:
        return self.tokens[i * self.n_ctx : (i + 1) * self.n_ctx]

    def computed(self, i: int) -> list[int]:
        """What is computed of window i: its BOS in place, and without the last, which nothing follows."""
        tokens = list(self.window(i)[:-1])
        if self.bos >= 0:
            tokens[0] = self.bos
        return tokens

    def targets(self, i: int) -> tuple[int, ...]:
        """The scored tokens of window i."""
        return self.window(i)[self.n_given + 1 :]


def cut(engine: Engine, text: str, n_ctx: int, n_window: int | None = None) -> Windows:
    """The first n_window windows of a text, None: all. Raises UsageError when it has not even one, or not so many."""
    if n_window is not None:
        text = text[: n_window * n_ctx * _CHARS_PER_TOKEN]
    # The empty text is the model's BOS if it wants one.
    beginning = engine.tokenize("")
    tokens = beginning + engine.tokenize(text, special=False)
    n = len(tokens) // n_ctx
    if n < (n_window or 1):
        raise UsageError(
            f"the text has {len(tokens):,} tokens, {n_window or 1} windows of {n_ctx} need more",
            hint="give a longer text, fewer `--windows`, or a smaller `--ctx`",
        )
    n = n_window or n
    return Windows(tuple(tokens[: n * n_ctx]), n_ctx, beginning[0] if beginning else -1, n_ctx // 2)


def log_probabilities(engine: Engine, windows: Windows, i: int) -> Iterator[F32]:
    """For each scored token of window i, the log-probabilities of the whole vocabulary in its place."""
    tokens = windows.computed(i)
    engine.reset()
    engine.eval(tokens[: windows.n_given])
    yield from log_rows(engine, tokens[windows.n_given :])


def log_rows(engine: Engine, tokens: Sequence[int]) -> Iterator[F32]:
    """Append tokens; the log-probabilities of what follows each."""
    piece = min(N_OUTPUTS, engine.plan.n_ubatch)
    for begin in range(0, len(tokens), piece):
        part = tokens[begin : begin + piece]
        engine.eval(part, want_all=True)
        for row in range(len(part)):
            yield log_softmax(np.frombuffer(engine.row(row), dtype=np.float32))


def log_softmax(logits: F32) -> F32:
    """Summed in float64; kept in float32, so that two equal rows have a divergence of exactly 0."""
    wide: F64 = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    return wide.astype(np.float32)


def divergence(reference: F32, model: F32) -> float:
    """KL(reference || model) of two rows of log-probabilities, in nats."""
    wide: F64 = reference.astype(np.float64)
    return float((np.exp(wide) * (wide - model)).sum())
