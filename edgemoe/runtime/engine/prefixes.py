"""States of sequences that others took the place of, so that a conversation goes on without computing it again.

They are copies of the KV cache in memory, bounded in bytes, which the expert cache gives way for. The one that was used
longest ago goes first: to the disk, where there is a store. A state that is taken up again leaves, as the engine has it
then; but one that cannot be cut stays.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ...errors import BudgetError, EdgeMoEError
from .backend import Backend
from .states import StateStore, Stored, shared

Room = Callable[[int, str], AbstractContextManager[None]]
MIN_TOKENS = 32  # of a prompt; fewer are computed again as fast as they are copied
_WHAT = "the state of a conversation"


@dataclass(frozen=True, eq=False)
class Kept:
    tokens: array[int]
    state: bytearray


class Prefixes:
    """max_bytes: of all states in memory. room: makes the expert cache give way for one. store: those on disk.

    cuts: whether a state can be shortened: else it is of use only where all of it is what a prompt begins with.
    """

    def __init__(self, max_bytes: int, room: Room, *, cuts: bool, store: StateStore | None = None) -> None:
        self.max_bytes = max_bytes
        self._room = room
        self.cuts = cuts
        self._store = store
        self._kept: list[Kept] = []  # the one used longest ago first
        self._lock = threading.Lock()  # several sequences may share what is kept

    @property
    def n_bytes(self) -> int:
        return sum(len(one.state) for one in self._kept)

    @property
    def n_kept(self) -> int:
        return len(self._kept)

    def best(self, wanted: array[int]) -> tuple[Kept | Stored | None, int]:
        """The state that shares the longest beginning with these tokens, and how many tokens that is."""
        with self._lock:
            candidates: list[Kept | Stored] = [*self._kept, *(self._store.stored if self._store else ())]
        found: tuple[Kept | Stored | None, int] = (None, 0)
        for one in candidates:
            n = shared(one.tokens, wanted)
            if n > found[1] and (self.cuts or n == len(one.tokens) < len(wanted)):
                found = (one, n)
        return found

    def keep(self, backend: Backend, tokens: array[int], *, to_disk: bool = True) -> None:
        """Remember the state of a backend's sequence, if there is room for it. to_disk: if there is none in memory."""
        n_bytes = backend.state_bytes()
        with self._lock:
            same = [one for one in self._kept if one.tokens == tokens]
            if same:
                self._kept = [*(one for one in self._kept if one is not same[0]), same[0]]
                return
            fits = 0 < n_bytes <= self.max_bytes
            if not fits and not (n_bytes and to_disk and self._store):
                return
            if fits:
                self._make_room(n_bytes, tokens)
            try:
                with self._room(n_bytes, _WHAT):
                    if fits:
                        self._kept.append(Kept(tokens[:], backend.state(n_bytes)))
                    elif self._store:
                        self._store.save(tokens, backend.state(n_bytes), cuts=self.cuts)
            except BudgetError:  # the experts need the memory more
                return

    def restore(self, backend: Backend, found: Kept | Stored) -> bool:
        """Make a state the backend's sequence. Whether that went well; where not, it is empty or as before."""
        try:
            if isinstance(found, Kept):
                if not self._take(found):
                    return False
                backend.set_state(found.state)
                return True
            assert self._store is not None
            with self._room(found.n_bytes, _WHAT):
                with self._lock:
                    state = self._store.load(found)
                if state is None:
                    return False
                backend.set_state(state)
                return True
        except EdgeMoEError:
            return False

    def _take(self, found: Kept) -> bool:
        """False where another sequence was faster. What cannot be cut is of use again as it is."""
        with self._lock:
            if not any(one is found for one in self._kept):
                return False
            others = [one for one in self._kept if one is not found]
            self._kept = others if self.cuts else [*others, found]
            return True

    def leave(self, backend: Backend, tokens: array[int]) -> None:
        """The engine closes: all that is here goes to the disk, and the backend's sequence last."""
        if self._store is None:
            return
        with self._lock:
            for one in self._kept:
                self._store.save(one.tokens, one.state, cuts=self.cuts)
            self._kept.clear()
            self.max_bytes = 0
        if len(tokens) >= MIN_TOKENS:
            self.keep(backend, tokens)

    def _make_room(self, n_bytes: int, tokens: array[int]) -> None:
        if self.cuts:  # what the new one begins with needs no state of its own
            self._kept = [one for one in self._kept if shared(one.tokens, tokens) < len(one.tokens)]
        while self._kept and self.n_bytes + n_bytes > self.max_bytes:
            oldest = self._kept.pop(0)
            if self._store:
                self._store.save(oldest.tokens, oldest.state, cuts=self.cuts)
