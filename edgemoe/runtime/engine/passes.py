"""Several answers at once: one thread computes for all, a token of each running answer in one pass.

An answer computes as if it were alone; it asks its `Seat`, which waits for its part of a pass. An answer's bytes do not
depend on who else is in it (`emoe_engine_step`). Between two passes one newcomer's prompt is gone on with, by one
batch: so no answer waits longer than that for its next token, and newcomers take turns. A newcomer's own first steps
(calls, then its prompt) go before the next batch of another's prompt: it waits for one batch, not for one a step.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ... import _native
from ...errors import Cancelled, EdgeMoEError, UnsupportedError, UsageError
from .backend import Backend

if TYPE_CHECKING:
    from ..model import ModelInfo

# How long a pass waits for answers that were in the last one: a share of what that took, and no less than a moment.
_PATIENCE, _LEAST_PATIENCE_S = 0.1, 0.002


class Sequences(Backend, Protocol):
    """A backend that holds several sequences. What `Backend` says of the sequence is about the one selected last."""

    def select(self, sequence: int) -> None: ...
    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> None:
        """Append a token to each of these sequences in one pass. On failure all are as before."""

    def text_of(self, sequence: int) -> _native.TextHandle:
        """The vocabulary, and the logits of what was last computed of a sequence."""


class _Work:
    """What a seat waits for: tokens to be computed, or a call between two passes."""

    def __init__(self, seat: int, tokens: Sequence[int] = (), *, want_all: bool = False) -> None:
        self.seat = seat
        self.tokens = tokens
        self.want_all = want_all
        self.n_done = 0
        self.cancelled = False
        self.call: Callable[[], Any] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()

    def end(self, error: BaseException | None = None) -> None:
        self.error = error
        self.done.set()


class Passes:
    """n_ubatch: tokens of a prompt that are computed between two passes."""

    def __init__(self, backend: Sequences, n_seat: int, n_ubatch: int) -> None:
        """backend: this object's from now on, but for what any thread may call."""
        self.backend = backend
        self.n_past = [0] * n_seat
        self._n_ubatch = n_ubatch
        self._change = threading.Condition()  # guards what follows
        self._steps: dict[int, _Work] = {}  # by seat
        self._prompts: deque[_Work] = deque()  # whose turn it is first
        self._last: _Work | None = None  # the prompt that was gone on with last
        self._calls: deque[_Work] = deque()
        self._awaited: set[int] = set()  # seats that were computed last and may soon bring their next token
        self._running: list[_Work] = []
        self._stepped = False  # the last thing computed was a pass
        self._until = 0.0
        self._closing = False
        self._step_s = 0.0
        self._thread = threading.Thread(target=self._run, name="edgemoe-passes", daemon=True)
        self._thread.start()

    def seats(self) -> list[Seat]:
        return [Seat(self, number) for number in range(len(self.n_past))]

    def decode(self, seat: int, tokens: Sequence[int], *, want_all: bool) -> None:
        """See `Backend.decode`."""
        self._wait(_Work(seat, tokens, want_all=want_all))

    def call(self, seat: int, function: Callable[[], Any]) -> Any:
        """What function returns, called between two passes with the seat's sequence selected."""
        work = _Work(seat)
        work.call = function
        self._wait(work)
        return work.result

    def cancel(self, seat: int) -> None:
        """End what is computed for a seat soon: a pass that others are in as well is not cut short."""
        with self._change:
            waiting = [work for work in (*self._steps.values(), *self._prompts) if work.seat == seat]
            for work in waiting:
                work.cancelled = True
                if work.n_done == 0 and work not in self._running:
                    self._drop(work)
                    work.end(Cancelled("cancelled"))
            for work in self._running:
                if work.seat == seat and not work.call:
                    work.cancelled = True
                    if len(self._running) == 1:  # under the lock, so that it cannot hit anybody else's
                        self.backend.cancel()

    def close(self) -> None:
        """End the thread; who waits gets UsageError."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self.backend.close()

    def _wait(self, work: _Work) -> None:
        with self._change:
            if self._closing:
                raise UsageError("the engine is closed")
            self._awaited.discard(work.seat)
            if work.call:
                self._calls.append(work)
            elif len(work.tokens) == 1:
                self._steps[work.seat] = work
            else:
                self._prompts.append(work)
            self._change.notify_all()
        try:
            work.done.wait()
        except BaseException:  # KeyboardInterrupt: the computing must end before anything else happens to the seat
            self.cancel(work.seat)
            work.done.wait()
            raise
        if work.error:
            raise work.error

    def _drop(self, work: _Work) -> None:
        if self._steps.get(work.seat) is work:
            del self._steps[work.seat]
        elif work in self._prompts:
            self._prompts.remove(work)

    # ---------------------------------------------------------------- the thread that computes

    def _run(self) -> None:
        while works := self._next():
            began = time.monotonic()
            first = works[0]
            if first.call:
                self._called(first)
            elif len(first.tokens) == 1:
                self._pass(works)
                self._step_s = time.monotonic() - began
            else:
                self._piece(first)
            with self._change:
                self._running = []
                self._until = time.monotonic() + max(_PATIENCE * self._step_s, _LEAST_PATIENCE_S)
        with self._change:
            for work in (*self._steps.values(), *self._prompts, *self._calls):
                work.end(UsageError("the engine is closed"))

    def _next(self) -> list[_Work]:
        """What to compute next: a call, a pass, or a piece of a prompt. Waits for it; empty at the end."""
        with self._change:
            while not self._closing:
                late = time.monotonic() >= self._until
                if late:
                    self._awaited.clear()
                if self._calls:
                    self._running = [self._calls.popleft()]
                    return self._running
                if self._prompts and (self._stepped or not (self._steps or self._awaited)):
                    self._stepped = False
                    others = (work for work in self._prompts if work is not self._last)
                    self._last = next(others, self._prompts[0])
                    self._running = [self._last]
                    return self._running
                if self._steps and not self._awaited:
                    self._stepped = True
                    self._running = [self._steps[seat] for seat in sorted(self._steps)]
                    self._steps.clear()
                    return self._running
                self._change.wait(max(0.0, self._until - time.monotonic()) if self._awaited else None)
            return []

    def _called(self, work: _Work) -> None:
        assert work.call
        try:
            self.backend.select(work.seat)
            work.result = work.call()
        except BaseException as error:  # for the thread that waits
            work.error = error
        self.n_past[work.seat] = self.backend.n_past
        with self._change:
            self._awaited.add(work.seat)
        work.end(work.error)

    def _pass(self, works: Sequence[_Work]) -> None:
        """A token of each. Where that fails each is computed alone, so that only whose part it was is told."""
        if len(works) > 1:
            try:
                self.backend.step([work.seat for work in works], [work.tokens[0] for work in works])
            except EdgeMoEError as error:
                works = self._kept(works, error)
            else:
                for work in works:
                    self.n_past[work.seat] += 1
                    self._finish(work)
                return
        for work in works:
            if self._computed(work, work.tokens):
                self._finish(work)

    def _kept(self, works: Sequence[_Work], error: EdgeMoEError) -> list[_Work]:
        """Those whose sequences a failed pass left as they were: all, unless moving one failed. The others are told."""
        lost = set()
        for seat, before in enumerate(self.n_past):
            self.backend.select(seat)
            self.n_past[seat] = self.backend.n_past
            if self.n_past[seat] != before:
                lost.add(seat)
        for work in works:
            if work.seat in lost:
                work.end(error)
        return [work for work in works if work.seat not in lost]

    def _piece(self, work: _Work) -> None:
        piece = work.tokens[work.n_done : work.n_done + self._n_ubatch]
        if not self._computed(work, piece):
            return
        work.n_done += len(piece)
        with self._change:
            self._prompts.remove(work)
            if work.n_done < len(work.tokens):
                self._prompts.append(work)
                return
        self._finish(work)

    def _computed(self, work: _Work, tokens: Sequence[int]) -> bool:
        """Tokens of one seat alone; False when that failed, and who waits has been told."""
        begin = self.n_past[work.seat] - work.n_done
        try:
            if work.cancelled:
                raise Cancelled("cancelled")
            self.backend.select(work.seat)
            self.backend.decode(tokens, want_all=work.want_all)
        except BaseException as error:  # for the thread that waits
            self._failed(work, begin, error)
            return False
        self.n_past[work.seat] = self.backend.n_past
        return True

    def _finish(self, work: _Work) -> None:
        if work.cancelled:  # in the middle of a pass: for its sequence it has not happened
            self._failed(work, self.n_past[work.seat] - len(work.tokens), Cancelled("cancelled"))
            return
        with self._change:
            self._awaited.add(work.seat)
        work.end()

    def _failed(self, work: _Work, begin: int, error: BaseException) -> None:
        """The sequence is cut to what it was before."""
        try:
            self.backend.select(work.seat)
            self.backend.rewind(min(begin, self.backend.n_past))
        except EdgeMoEError as another:
            error = another
        self.n_past[work.seat] = self.backend.n_past
        with self._change:
            self._drop(work)
        work.end(error)


class Seat:
    """See `Backend`: one sequence of several. What is said of the cache is about the one that all share."""

    def __init__(self, passes: Passes, number: int) -> None:
        self._passes = passes
        self._all = passes.backend
        self.number = number
        self.text = self._all.text_of(number)
        self.n_vocab = self._all.n_vocab
        self.n_ctx = self._all.n_ctx

    @property
    def engine(self) -> _native.EngineHandle:
        return self._all.engine

    @property
    def n_past(self) -> int:
        return self._passes.n_past[self.number]

    def decode(self, tokens: Sequence[int], *, want_all: bool) -> None:
        self._passes.decode(self.number, tokens, want_all=want_all)

    def verify(self, tokens: Sequence[int]) -> None:
        raise UnsupportedError("drafts are not verified where several answers are computed at once")

    def check_verify(self) -> None:
        self._all.check_verify()

    def row(self, i: int) -> array[float]:
        return _native.text_logits(self.text, i, self.n_vocab)

    def rewind(self, n: int) -> None:
        if n != self.n_past:
            self._passes.call(self.number, lambda: self._all.rewind(n))

    def can_cut(self) -> bool:
        return self._all.can_cut()

    def state_key(self) -> int:
        return self._all.state_key()

    def state_bytes(self) -> int:
        return int(self._passes.call(self.number, self._all.state_bytes))

    def state(self, n_bytes: int) -> bytearray:
        state: bytearray = self._passes.call(self.number, lambda: self._all.state(n_bytes))
        return state

    def set_state(self, state: bytearray) -> None:
        self._passes.call(self.number, lambda: self._all.set_state(state))

    def checkpoint_bytes(self) -> int:
        return int(self._passes.call(self.number, self._all.checkpoint_bytes))

    def checkpoint(self, n_bytes: int) -> bytearray:
        state: bytearray = self._passes.call(self.number, lambda: self._all.checkpoint(n_bytes))
        return state

    def set_checkpoint(self, state: bytearray) -> None:
        self._passes.call(self.number, lambda: self._all.set_checkpoint(state))

    def cancel(self) -> None:
        self._passes.cancel(self.number)

    def set_cache_bytes(self, cache_bytes: int) -> None:
        self._all.set_cache_bytes(cache_bytes)

    def stats(self) -> dict[str, Any]:
        return self._all.stats()

    def resident(self, layer: int) -> int:
        return self._all.resident(layer)

    def experts(self, layer: int) -> bytes:
        return self._all.experts(layer)

    def accuracy(self, layer: int) -> tuple[list[int], list[int]]:
        return self._all.accuracy(layer)

    def trace(self, path: str | None, header: str) -> None:
        self._all.trace(path, header)

    def recall(self, info: ModelInfo) -> None:
        self._all.recall(info)

    def remember(self, info: ModelInfo) -> None:
        self._all.remember(info)

    def close(self) -> None:
        self._passes.close()
