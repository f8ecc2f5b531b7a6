"""Drafts: tokens that may come next, guessed from the text itself, to be verified by the model in one pass.

Prompt lookup (n-gram) decoding: what followed the last tokens when they stood in the context before is proposed again.
Verified tokens are rounded as if they had been decoded alone (`emoe_engine_verify`), so drafts change the speed only.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress

from ...errors import UnsupportedError, UsageError
from ..setup import MAX_DRAFT
from .backend import Backend
from .sequence import TokenSequence

# What a drafted token adds to a pass, in tokens: where experts are read for each of them, and where all are in memory.
COST_STREAMED, COST_RESIDENT = 0.75, 0.3

_MATCHES = (4, 3, 2)  # lengths of what must have stood there before, the longest first
_ITEM = array("i").itemsize


def allowed(backend: Backend, n_draft: int | None) -> int:
    """Most tokens to draft with this model. Raises UnsupportedError when some were asked for and it can verify none."""
    if n_draft == 0:
        return 0
    try:
        backend.check_verify()
    except UnsupportedError:
        if n_draft is not None:
            raise
        return 0
    return MAX_DRAFT if n_draft is None else n_draft


def propose(tokens: array[int], n_draft: int) -> tuple[list[int], int]:
    """At most n_draft tokens that followed the last occurrence of the sequence's end; and how long that match is."""
    raw = tokens.tobytes()
    for n_match in _MATCHES:
        if len(tokens) <= n_match:
            continue
        suffix = raw[-n_match * _ITEM :]
        at = len(raw) - _ITEM  # an occurrence ends before the last token
        while (at := raw.rfind(suffix, 0, at)) >= 0:
            if at % _ITEM == 0:
                begin = at // _ITEM + n_match
                drafted = tokens[begin : begin + n_draft].tolist()
                n_text = next((i for i, token in enumerate(drafted) if token < 0), len(drafted))
                return drafted[:n_text], n_match  # rows of pictures are nothing to guess
            at += len(suffix) - 1  # between two tokens: look further left
    return [], 0


class Payoff:
    """How many drafted tokens are worth a pass, from what passes took and what came of them.

    A pass of m drafted tokens takes t1 (1 + c m) and keeps 1 + a + a² + … of them, where a is how often a drafted
    token is right, by length of the match. c and a are means over about the last hundred observations; what is not
    tried any more drifts back to where it began, so that it is tried again.
    """

    _CERTAIN = 4.0  # observations that the first guess of a mean counts for
    _MEMORY = 100.0
    _RIGHT = {4: 0.8, 3: 0.65, 2: 0.5}  # noqa: RUF012

    def __init__(self, cost: float) -> None:
        """cost: first guess of c."""
        self._first_cost = cost
        self._given_up = False
        self._token_s = 0.0
        self._cost = (cost, self._CERTAIN)
        self._right = {n_match: (right, self._CERTAIN) for n_match, right in self._RIGHT.items()}

    def worth(self, n_match: int, n_most: int) -> int:
        """Tokens to draft, 0 to n_most."""
        if self._given_up:
            return 0
        cost, right = self._cost[0], self._right[n_match][0]
        best, best_speed, kept = 0, 1.0, 1.0
        for m in range(1, n_most + 1):
            kept += right**m
            speed = kept / (1 + cost * m)
            if speed > best_speed * 1.02:
                best, best_speed = m, speed
        if best == 0:
            self._right[n_match] = self._mean(self._right[n_match], self._RIGHT[n_match], 0.2)
            self._cost = self._mean(self._cost, self._first_cost, 0.2)
        return best

    def give_up(self) -> None:
        """Nothing is worth a pass any more."""
        self._given_up = True

    def token(self, seconds: float) -> None:
        """A token was computed alone."""
        # Falls fast and rises slowly: tokens right after a pass are slower than where there are no passes.
        share = 0.02 if seconds > self._token_s > 0 else 0.5 if self._token_s else 1.0
        self._token_s += (seconds - self._token_s) * share

    def computed(self, m: int, seconds: float) -> None:
        """A pass of m drafted tokens."""
        if self._token_s:
            self._cost = self._mean(self._cost, max(0.0, seconds / self._token_s - 1) / m, float(m))

    def verified(self, n_match: int, right: bool) -> None:
        """A drafted token has been looked at."""
        self._right[n_match] = self._mean(self._right[n_match], float(right), 1.0)

    def _mean(self, mean: tuple[float, float], x: float, weight: float) -> tuple[float, float]:
        value, n = mean
        n = min(n, self._MEMORY) + weight
        return value + (x - value) * weight / n, n


class Lookahead:
    """The computing of an answer's tokens after the first: one by one, or drafted and verified together.

    n_draft: tokens drafted so far; n_used: of them those that became part of an answer.
    """

    def __init__(self, sequence: TokenSequence, n_most: int, payoff: Payoff) -> None:
        """sequence: with the answer's prompt in it. n_most: 0 to MAX_DRAFT tokens at once."""
        self.n_draft = self.n_used = 0
        self.row = 0
        self._sequence, self._n_most, self._payoff = sequence, n_most, payoff
        self._epoch = sequence.epoch
        self._pending: list[int] = []  # in the sequence already, not yet confirmed
        self._n_match = 0

    @property
    def n_pending(self) -> int:
        """Tokens at the end of the sequence that are guesses."""
        return len(self._pending)

    def append(self, token: int, compute: Callable[[Sequence[int]], None]) -> None:
        """Make `token` the sequence's next; `row` then says where the logits after it are.

        compute: appends one token the ordinary way.
        """
        if self._pending:
            right = self._pending[0] == token
            self._payoff.verified(self._n_match, right)
            if right:
                self._pending.pop(0)
                self.row += 1
                self.n_used += 1
                return
            self._drop()
        drafted = self._propose(token)
        begin = time.perf_counter()
        if not drafted:
            compute([token])
            self._payoff.token(time.perf_counter() - begin)
        elif self._verified([token, *drafted]):
            self._payoff.computed(len(drafted), time.perf_counter() - begin)
            self.n_draft += len(drafted)
            self._pending = drafted
        else:
            compute([token])
        self.row = 0

    def close(self) -> None:
        """Take the guesses that nobody confirmed out of the sequence, if it still is the answer's."""
        if self._sequence.epoch == self._epoch:
            with suppress(UsageError):  # the engine was closed, or is busy elsewhere: what is in it is known
                self._drop()

    def _verified(self, tokens: list[int]) -> bool:
        """False when this model's graph of several tokens turns out not to be that of one: no more is drafted then."""
        try:
            self._sequence.verify(tokens, epoch=self._epoch)
        except UnsupportedError:
            self._payoff.give_up()
            return False
        return True

    def _drop(self) -> None:
        if self._pending:
            n, self._pending = len(self._pending), []
            self._sequence.cut(self._sequence.n_past - n, epoch=self._epoch)

    def _propose(self, token: int) -> list[int]:
        n_most = min(self._n_most, self._sequence.n_ctx - self._sequence.n_past - 1)
        if n_most <= 0:
            return []
        drafted, self._n_match = propose(self._sequence.followed_by(token), n_most)
        return drafted[: self._payoff.worth(self._n_match, len(drafted))] if drafted else []
