"""The tokens that a backend holds, and the computing of more: one thread at a time, cancellable from any."""

from __future__ import annotations

import functools
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from ... import _native
from ...errors import Cancelled, NativeError, UnsupportedError, UsageError
from .backend import Backend
from .checkpoints import Trail, last_before, stops
from .pictures import Pictures, Row, runs, whole_parts
from .prefixes import MIN_TOKENS, Prefixes
from .states import shared

T = TypeVar("T")

_ANSWER_TOKENS = 512  # of room that a hint leaves for an answer
_WAIT_S = 0.05  # how late a signal handler may run during prefill


class TokenSequence:
    """The sequence of a backend.

    epoch: counts the purposes it has served: continuing an answer keeps it, anything else that changes it begins one.
    """

    def __init__(self, backend: Backend, control: threading.RLock, *, longest: int = 0) -> None:
        """control: guards the backend; reentrant: a signal handler may call `cancel` in the thread that has it.

        longest: tokens of the longest context that the model can have, 0 if that is not known: for hints.
        """
        self.n_vocab = backend.n_vocab
        self.n_ctx = backend.n_ctx
        self.epoch = 0
        self.prefixes: Prefixes | None = None
        self.pictures: Pictures | None = None
        self.trail = Trail()
        self._n_prompt = 0  # tokens of it that were somebody's prompt
        self.n_kept = 0  # what `become` found there, known while it computes the rest
        self._longest = longest or self.n_ctx
        self._backend: Backend | None = backend
        self._control = control
        self._busy = threading.Lock()  # held while something is computed, cut or sampled
        self._tokens = array("i")
        self._cancelled = False
        self.siblings: tuple[TokenSequence, ...] = ()  # of the same engine
        self._rests = False  # nobody goes on with it without beginning anew: a sibling may take it over

    @property
    def backend(self) -> Backend:
        """For calls that any thread may make, under `control`. Raises UsageError after `close`."""
        if self._backend is None:
            raise UsageError("the engine is closed")
        return self._backend

    @property
    def text(self) -> _native.TextHandle:
        """The backend's vocabulary and logits. Raises UsageError after `close`."""
        return self.backend.text

    @property
    def n_past(self) -> int:
        """Tokens in the sequence."""
        return len(self._tokens)

    def check(self, tokens: Sequence[int]) -> None:
        """Raise UsageError for a token that is not in the vocabulary."""
        wrong = next((t for t in tokens if not 0 <= t < self.n_vocab and not isinstance(t, Row)), None)
        if wrong is not None:
            raise UsageError(f"token {wrong} is not in the vocabulary of {self.n_vocab:,}")

    def check_prompt(self, tokens: Sequence[int]) -> None:
        """Raise UsageError for a prompt that is empty or longer than the context."""
        if not tokens:
            raise UsageError("the prompt is empty")
        self.check(tokens)
        if len(tokens) > self.n_ctx:
            raise UsageError(
                f"the prompt has {len(tokens):,} tokens, the context holds {self.n_ctx:,}", hint=self._room(len(tokens))
            )

    def _room(self, n_token: int) -> str:
        """What to do about a prompt that does not fit: a larger context only where the model can have it."""
        if n_token > self._longest:
            return f"the model was trained for {self._longest:,} tokens: give a shorter prompt, or ask in parts"
        wanted = min(n_token + _ANSWER_TOKENS, self._longest)
        more = " or more" if wanted < self._longest else ", all that the model was trained for"
        return f"use `--ctx {wanted}`{more}, or a shorter prompt"

    def remember_in(self, prefixes: Prefixes | None) -> None:
        """Where conversations are set aside from now on; checkpoints of before are forgotten."""
        self.prefixes = prefixes
        self.trail.cut(0)

    def begin(self) -> None:
        """Something new is asked for: what was cancelled before is forgotten."""
        self._cancelled = False
        with self._control:
            self._rests = False

    def rest(self, epoch: int) -> None:
        """The answer of that epoch has ended. A sibling may take its tokens, for a prompt that begins with them."""
        with self._control:
            self._rests = self.epoch == epoch

    def cancel(self) -> None:
        """End what is being computed soon, with Cancelled in the thread that computes; or what is computed next."""
        self._cancelled = True
        with self._control:
            if self._backend is not None:
                self._backend.cancel()

    def close(self) -> None:
        """End what another thread computes; no call reaches the backend afterwards."""
        self.cancel()
        with self._busy, self._control:
            if self.prefixes and self._backend is not None:
                self.prefixes.leave(self._backend, self._tokens, self.trail)
            self._backend = None

    def append(self, tokens: Sequence[int], *, want_all: bool = False, epoch: int | None = None) -> None:
        """Compute tokens after those in the sequence. Raises ContextFullError, StorageError, Cancelled.

        epoch: that of the answer under way, which these tokens continue; None: they are something else.
        """
        with self._exclusive() as backend:
            if self._cancelled:
                raise Cancelled("cancelled")
            self._begin_epoch(epoch)
            try:
                for run in runs(tokens):
                    self._compute(backend, run, want_all)
                    self._tokens.extend(run)
            finally:
                self._synchronize(backend)

    def tokens_of(self, pictures: Sequence[bytes]) -> list[list[int]]:
        """The tokens and rows of pictures; see `Pictures`. Raises UnsupportedError where there is no encoder."""
        if not pictures:
            return []
        with self._exclusive() as backend:
            if self.pictures is None:
                raise UnsupportedError(
                    "this model reads no pictures here: there is no encoder for them",
                    hint="name its mmproj file: `--mmproj FILE`; one alone beside the model is found",
                )
            return self._in_thread(backend, functools.partial(self.pictures.tokens, backend, pictures))

    def _compute(self, backend: Backend, run: Sequence[int], want_all: bool) -> None:
        if run and isinstance(run[0], Row):
            assert self.pictures is not None  # who made the row
            self._in_thread(backend, functools.partial(self.pictures.compute, backend, run[0]))
        elif len(run) > 1:
            self._in_thread(backend, functools.partial(backend.decode, run, want_all=want_all))
        else:
            backend.decode(run, want_all=want_all)

    def verify(self, tokens: Sequence[int], *, epoch: int) -> None:
        """Compute a few tokens in one pass, each rounded as if decoded alone; logits of all. Raises like `append`."""
        with self._exclusive() as backend:
            if self._cancelled:
                raise Cancelled("cancelled")
            self._begin_epoch(epoch)
            try:
                backend.verify(tokens)
                self._tokens.extend(tokens)
            finally:
                self._synchronize(backend)

    def followed_by(self, token: int) -> array[int]:
        """The tokens of the sequence and one more: a copy."""
        tokens = self._tokens[:]
        tokens.append(token)
        return tokens

    def become(self, tokens: Sequence[int], *, anew: bool = False) -> int:
        """Make `tokens` the whole sequence, with the logits of the last. A common beginning is not computed again.

        Returns how many tokens that was. anew: compute all of them.
        """
        wanted = array("i", tokens)
        if self.siblings and not anew:
            self._trade(wanted)
        common = 0 if anew else shared(self._tokens, wanted)
        if self.prefixes:
            common = 0 if anew else self.prefixes.usable(self._tokens, self.trail.places, wanted)
            common = self._exchange(self.prefixes, wanted, common, anew=anew)
        self._n_prompt = len(wanted)
        keep = whole_parts(tokens, min(common, len(wanted) - 1))  # the last is computed again for its logits
        try:
            self.rewind(keep)
        except UnsupportedError:  # recurrent state cannot be cut
            self.rewind(0)
        n_reused = self.n_kept = len(self._tokens)
        if self.prefixes and not self.prefixes.cuts:
            self._note(self.prefixes)  # the next prompt may tell what comes now otherwise, or the answer after it
            for stop in stops(n_reused, len(wanted), self.prefixes.n_batch):
                self.append(tokens[len(self._tokens) : whole_parts(tokens, stop)])
                self._note(self.prefixes)
        else:
            self.append(tokens[n_reused:])
        if self.pictures:
            with self._exclusive() as backend:
                self.pictures.forget(backend)
        return n_reused

    def _note(self, prefixes: Prefixes) -> None:
        with self._exclusive() as backend:
            if len(self._tokens) >= MIN_TOKENS and len(self._tokens) not in self.trail.places:
                prefixes.note(backend, self.trail, len(self._tokens))

    def _trade(self, wanted: array[int]) -> None:
        """Change places with a sibling that rests and has more of these tokens."""
        with self._exclusive() as backend, self._control:
            self._synchronize(backend)
            resting = [one for one in self.siblings if one._rests]
            best = max(resting, key=lambda one: shared(one._tokens, wanted), default=None)
            if best is None or shared(best._tokens, wanted) < shared(self._tokens, wanted) + MIN_TOKENS:
                return
            self._backend, best._backend = best._backend, self._backend
            self._tokens, best._tokens = best._tokens, self._tokens
            self._n_prompt, best._n_prompt = best._n_prompt, self._n_prompt
            checkpoints, self.trail.checkpoints = self.trail.checkpoints, best.trail.checkpoints
            best.trail.checkpoints = checkpoints
            best.epoch += 1

    def _exchange(self, prefixes: Prefixes, wanted: array[int], common: int, *, anew: bool) -> int:
        """Set a conversation aside whose prompt would be lost, and take up the one that goes on. Tokens shared then."""
        found, n_shared = (None, 0) if anew else prefixes.best(wanted)
        better = found is not None and n_shared >= common + MIN_TOKENS
        left = 0 if better or anew else common
        with self._exclusive() as backend:
            if min(self._n_prompt, len(self._tokens)) >= left + MIN_TOKENS:
                prefixes.keep(backend, self._tokens, self.trail, left)
            if better and found is not None:
                self._begin_epoch(None)
                restored = prefixes.restore(backend, found, n_shared, self.trail)
                self._tokens, common = (found.tokens[:], n_shared) if restored else (array("i"), 0)
            elif common and not prefixes.cuts and common < len(self._tokens):
                self._begin_epoch(None)
                common = last_before(self.trail.places, common)
                common = common if common and prefixes.back(backend, self.trail, common) else 0
            self._synchronize(backend)
            return common

    def rewind(self, n: int) -> None:
        """Cut the sequence to its first n tokens. Raises UnsupportedError for a recurrent model unless n is 0."""
        if n < 0:
            raise UsageError(f"a sequence cannot be cut to {n} tokens")
        self.cut(n, epoch=None)

    def cut(self, n: int, *, epoch: int | None) -> None:
        """`rewind` in the middle of an answer, or with None as a purpose of its own."""
        with self._exclusive() as backend:
            self._begin_epoch(epoch)
            try:
                backend.rewind(n)
            finally:
                self._synchronize(backend)

    def sample(
        self, sampler: _native.SamplerHandle, epoch: int, *, row: int = 0, special: bool = False
    ) -> tuple[int, bytes | None]:
        """The next token and its bytes; None instead of these when it ends the answer, or a grammar allows none.

        row: of the last computation's logits. special: the bytes of control tokens too, which are empty otherwise.
        Raises UsageError when the sequence has been used for something else since `epoch`.
        """
        with self._exclusive() as backend:
            self._begin_epoch(epoch)
            token = _native.sampler_sample(sampler, backend.text, row)
            if token == -1:
                raise NativeError("there are no logits to sample from")
            if token < 0 or _native.text_is_eog(backend.text, token):
                return token, None
            return token, _native.text_piece(backend.text, token, special=special)

    def logprobs(self, token: int, n_top: int, *, row: int = 0) -> tuple[float, list[tuple[int, float]]]:
        """Log-probability of a token in a row of logits, and the n_top likeliest tokens with theirs."""
        with self._exclusive() as backend:
            return _native.text_logprobs(backend.text, row, token, n_top)

    def row(self, i: int) -> array[float]:
        """Logits of row i of the last computation: a copy, float32 [n_vocab]."""
        with self._exclusive() as backend:
            return backend.row(i)

    def _begin_epoch(self, epoch: int | None) -> None:
        if epoch is None:
            self.epoch += 1
        elif epoch != self.epoch:
            raise UsageError("the engine was used for something else in the middle of this answer")

    def _in_thread(self, backend: Backend, call: Callable[[], T]) -> T:
        """A prefill takes seconds, in which the main thread must be able to run signal handlers."""
        failure: list[BaseException] = []
        results: list[T] = []
        done = threading.Event()  # not Thread.join: before Python 3.13 an interrupted join takes the thread for ended

        def decode() -> None:
            try:
                results.append(call())
            except BaseException as error:  # for the thread that waits
                failure.append(error)
            finally:
                done.set()

        threading.Thread(target=decode, name="edgemoe-prefill").start()
        try:
            while not done.wait(_WAIT_S):
                if self._cancelled:  # again: the first may have come before the native call began
                    backend.cancel()
        except BaseException:  # KeyboardInterrupt: the native call must end before anything else happens to the engine
            while not done.is_set():
                with suppress(KeyboardInterrupt):
                    backend.cancel()
                    done.wait(_WAIT_S)
            raise
        if failure:
            raise failure[0]
        return results[0]

    def _synchronize(self, backend: Backend) -> None:
        """After a failure the native sequence is shorter than what was asked for."""
        del self._tokens[backend.n_past :]
        self.trail.cut(len(self._tokens))

    @contextmanager
    def _exclusive(self) -> Iterator[Backend]:
        """The backend, for this thread alone. Raises UsageError when another thread has it."""
        if not self._busy.acquire(blocking=False):
            raise UsageError("the engine is busy in another thread", hint="an engine computes one thing at a time")
        try:
            yield self.backend
        finally:
            self._busy.release()


def n_computed(sequences: Sequence[TokenSequence]) -> int:
    """Tokens that the sequences of an engine have computed; while one of them computes, another number each time."""
    if any(sequence._busy.locked() for sequence in sequences):
        return time.monotonic_ns()
    stats = sequences[0].backend.stats()
    return int(stats["n_decode"] + stats["n_prefill"])
