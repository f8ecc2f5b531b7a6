"""Log-probabilities of a prompt's own tokens: what a language model thinks of a text that is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ... import _native
from ..text.stream import Step
from .sequence import TokenSequence


def scores(
    sequence: TokenSequence, append: Callable[..., None], tokens: Sequence[int], n_top: int, n_row: int
) -> Iterator[Step]:
    """See `Engine.scores`. n_row: tokens whose logits are kept at once."""
    sequence.rewind(0)
    epoch = sequence.epoch
    yield Step(tokens[0], _native.text_piece(sequence.text, tokens[0], special=False), "")
    for begin in range(0, len(tokens), n_row):
        part = tokens[begin : begin + n_row]
        append(part, want_all=len(part) > 1, epoch=epoch)
        for row, token in enumerate(tokens[begin + 1 : begin + len(part) + 1]):
            logprob, top = sequence.logprobs(token, n_top, row=row)
            yield Step(token, _native.text_piece(sequence.text, token, special=False), "", logprob, tuple(top))
