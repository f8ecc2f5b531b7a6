"""States of sequences that others took the place of, so that a conversation goes on without computing it again.

They are copies of the KV cache in memory, bounded in bytes, which the expert cache gives way for. The one that was used
longest ago goes first: to the disk, where there is a store. A state that is taken up again leaves, as the engine has it
then. Where states cannot be cut, the bound is of the checkpoints too, of which the sequences in the engine have half.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ...errors import BudgetError, EdgeMoEError
from .backend import Backend
from .checkpoints import Checkpoint, Kept, Trail, last_before, thinned
from .states import StateStore, Stored, shared, stands_for

MIN_TOKENS = 32  # of a prompt; fewer are computed again as fast as they are copied
_WHAT = "the state of a conversation"


class Room(Protocol):
    """What makes the expert cache give way: `Allowance`."""

    def growing(self, n_bytes: int, what: str) -> AbstractContextManager[None]: ...

    def hold(self, n_bytes: int, what: str) -> object: ...

    def release(self, n_bytes: int) -> object: ...


class Prefixes:
    """max_bytes: of all in memory. room: what makes the expert cache give way for it. store: those on disk.

    trails: the checkpoints of the sequences that share this. cuts: whether a state can be shortened anywhere, or at
    its checkpoints only. n_batch: tokens of a prompt that are computed at once.
    """

    def __init__(
        self,
        max_bytes: int,
        room: Room,
        trails: Sequence[Trail],
        *,
        cuts: bool,
        n_batch: int,
        store: StateStore | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.cuts, self.n_batch = cuts, n_batch
        self._room = room
        self._trails = trails
        self._store = store
        self._kept: list[Kept] = []  # the one used longest ago first
        self._n_held = 0  # bytes that the expert cache has given way for
        self._lock = threading.Lock()  # several sequences may share what is kept

    @property
    def n_bytes(self) -> int:
        """Of all states and checkpoints. A conversation that branched may share these with another."""
        owned = (*(one.checkpoints for one in self._kept), *(trail.checkpoints for trail in self._trails))
        checkpoints = {id(one): len(one.state) for checkpoints in owned for one in checkpoints}
        return sum(len(one.state) for one in self._kept) + sum(checkpoints.values())

    @property
    def n_kept(self) -> int:
        return len(self._kept)

    def usable(self, tokens: array[int], places: Sequence[int], wanted: array[int]) -> int:
        """Tokens of a sequence, with checkpoints at these places, that a prompt can go on from."""
        n = shared(tokens, wanted)
        if self.cuts or n == len(tokens) < len(wanted):
            return n
        return last_before(places, min(n, len(wanted) - 1))

    def best(self, wanted: array[int]) -> tuple[Kept | Stored | None, int]:
        """The state that has the longest beginning of these tokens, and how many tokens that is."""
        with self._lock:
            candidates: list[Kept | Stored] = [*self._kept, *(self._store.stored if self._store else ())]
        found: tuple[Kept | Stored | None, int] = (None, 0)
        for one in candidates:
            n = self.usable(one.tokens, one.places, wanted)
            if n > found[1]:
                found = (one, n)
        return found

    def keep(self, backend: Backend, tokens: array[int], trail: Trail, n_left: int = 0) -> None:
        """Remember the state of a backend's sequence, on disk if there is no room for it in memory.

        n_left: of its tokens, how many it is cut to afterwards. Checkpoints may be lost, that one last.
        """
        n_bytes = backend.state_bytes()
        with self._lock:
            same = [one for one in self._kept if one.tokens == tokens]
            if same:
                self._kept = [*(one for one in self._kept if one is not same[0]), same[0]]
                return
            fits = 0 < n_bytes <= self.max_bytes
            if not fits and not (n_bytes and self._store):
                return
            if fits:  # what the new one can be cut to needs no state of its own
                self._kept = [
                    one for one in self._kept if not stands_for(tokens, trail.places, one.tokens, cuts=self.cuts)
                ]
                self._give_way(n_bytes)
                limit = self.max_bytes - n_bytes - (self.n_bytes - trail.n_bytes)
                if trail.n_bytes > limit:
                    trail.cut(n_left or len(tokens))
                    trail.checkpoints = thinned(trail.checkpoints, limit)
            try:
                self._hold(n_bytes)
                one = Kept(tokens[:], backend.state(n_bytes), trail.checkpoints)
                if fits:
                    self._kept.append(one)
                elif self._store:
                    self._store.save(one, cuts=self.cuts)
            except BudgetError:  # the experts need the memory more
                return
            finally:
                self._settle()

    def note(self, backend: Backend, trail: Trail, n: int) -> None:
        """Remember that a backend's sequence can be cut to the n tokens that it has now, if there is room for it."""
        n_bytes = backend.checkpoint_bytes()
        share = self.max_bytes // 2 // len(self._trails)
        if not 0 < n_bytes <= share:
            return
        with self._lock:
            self._give_way(n_bytes)
            try:
                self._hold(n_bytes)
                trail.add(Checkpoint(n, backend.checkpoint(n_bytes)), share)
            except BudgetError:
                return
            finally:
                self._settle()

    def back(self, backend: Backend, trail: Trail, n: int) -> bool:
        """Cut a backend's sequence to a place of its trail. Whether that went well; where not, it is empty."""
        try:
            backend.set_checkpoint(trail.at(n).state)
        except EdgeMoEError:
            return False
        trail.cut(n)
        return True

    def restore(self, backend: Backend, found: Kept | Stored, n: int, trail: Trail) -> bool:
        """Make n tokens of a state the backend's sequence. Whether that went well; where not, it is empty or as before.

        n: as `best` said.
        """
        try:
            if isinstance(found, Kept):
                return self._take(found, n) and self._set(backend, found, n, trail)
            assert self._store is not None
            with self._room.growing(found.n_bytes, _WHAT):
                with self._lock:
                    kept = self._store.load(found)
                return kept is not None and self._set(backend, kept, n, trail)
        except EdgeMoEError:
            return False

    def _set(self, backend: Backend, kept: Kept, n: int, trail: Trail) -> bool:
        backend.set_state(kept.state)
        trail.checkpoints = thinned(kept.checkpoints, self.max_bytes // 2 // len(self._trails))
        if self.cuts or n == len(kept.tokens):
            return True
        trail.checkpoints = tuple(one for one in kept.checkpoints if one.n <= n)
        return self.back(backend, trail, n)

    def _take(self, found: Kept, n: int) -> bool:
        """False where another sequence was faster. What is cut at a checkpoint is of use again as it is."""
        with self._lock:
            if not any(one is found for one in self._kept):
                return False
            others = [one for one in self._kept if one is not found]
            self._kept = others if self.cuts or n == len(found.tokens) else [*others, found]
            return True

    def leave(self, backend: Backend, tokens: array[int], trail: Trail) -> None:
        """The engine closes: all that is here goes to the disk, and the backend's sequence last."""
        if self._store is None:
            return
        with self._lock:
            for one in self._kept:
                self._store.save(one, cuts=self.cuts)
            self._kept.clear()
            self.max_bytes = 0
            self._settle()
        if len(tokens) >= MIN_TOKENS:
            self.keep(backend, tokens, trail)

    def forget(self) -> None:
        """All that is in memory: the cache gets it back."""
        with self._lock:
            self._kept.clear()
            for trail in self._trails:
                trail.cut(0)
            self._settle()

    def _hold(self, n_bytes: int) -> None:
        self._room.hold(n_bytes, _WHAT)
        self._n_held += n_bytes

    def _settle(self) -> None:
        """What has been dropped since is the cache's again."""
        n_gone = self._n_held - self.n_bytes
        if n_gone > 0:
            self._n_held -= n_gone
            self._room.release(n_gone)

    def _give_way(self, n_bytes: int) -> None:
        """The states used longest ago, for so many bytes more."""
        while self._kept and self.n_bytes + n_bytes > self.max_bytes:
            oldest = self._kept.pop(0)
            if self._store:
                self._store.save(oldest, cuts=self.cuts)
