"""States of sequences that others took the place of, so that a conversation goes on without computing it again.

They are copies of the KV cache in memory, bounded in bytes, which the expert cache gives way for. The one that was used
longest ago goes first. A state that is taken up again leaves: the engine has it then.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ...errors import BudgetError, EdgeMoEError
from .backend import Backend

Room = Callable[[int, str], AbstractContextManager[None]]
MIN_TOKENS = 32  # of a prompt; fewer are computed again as fast as they are copied


@dataclass(frozen=True)
class Kept:
    tokens: array[int]
    state: bytearray


class Prefixes:
    """max_bytes: of all states. room: makes the expert cache give way for one.

    cuts: whether a state can be shortened: else it is of use only where all of it is what a prompt begins with.
    """

    def __init__(self, max_bytes: int, room: Room, *, cuts: bool) -> None:
        self.max_bytes = max_bytes
        self._room = room
        self._cuts = cuts
        self._kept: list[Kept] = []  # the one used longest ago first
        self._lock = threading.Lock()  # several sequences may share what is kept

    @property
    def n_bytes(self) -> int:
        return sum(len(one.state) for one in self._kept)

    @property
    def n_kept(self) -> int:
        return len(self._kept)

    def best(self, wanted: array[int]) -> tuple[Kept | None, int]:
        """The state that shares the longest beginning with these tokens, and how many tokens that is."""
        found: tuple[Kept | None, int] = (None, 0)
        for one in tuple(self._kept):
            n = shared(one.tokens, wanted)
            if n > found[1] and (self._cuts or n == len(one.tokens) < len(wanted)):
                found = (one, n)
        return found

    def keep(self, backend: Backend, tokens: array[int]) -> None:
        """Remember the state of a backend's sequence, if there is room for it."""
        n_bytes = backend.state_bytes()
        if not 0 < n_bytes <= self.max_bytes:
            return
        with self._lock:
            if self._cuts:  # what the new one begins with needs no state of its own
                self._kept = [one for one in self._kept if shared(one.tokens, tokens) < len(one.tokens)]
            while self._kept and self.n_bytes + n_bytes > self.max_bytes:
                del self._kept[0]
            try:
                with self._room(n_bytes, "the state of a conversation"):
                    self._kept.append(Kept(tokens[:], backend.state(n_bytes)))
            except BudgetError:  # the experts need the memory more
                return

    def restore(self, backend: Backend, kept: Kept) -> bool:
        """Make a state the backend's sequence. Whether that went well; it is not to be relied on where it did not."""
        with self._lock:
            if not any(one is kept for one in self._kept):  # another sequence was faster
                return False
            self._kept = [one for one in self._kept if one is not kept]
        try:
            backend.set_state(kept.state)
        except EdgeMoEError:
            return False
        return True


def shared(first: array[int], second: array[int]) -> int:
    """Tokens that two sequences begin with."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])
