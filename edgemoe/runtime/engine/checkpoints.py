"""Where a sequence that cannot be cut at any token can be cut all the same.

Recurrent states and sliding windows are of the last token alone. A checkpoint is a copy of them at an earlier one. What
else there is of a state can be cut, so a checkpoint is of use with the sequence that it is of, or with its state.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STEP_TOKENS = 1024  # between two checkpoints of a long prompt, at least


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """n: tokens of the sequence then. state: `Backend.checkpoint`."""

    n: int
    state: bytearray


@dataclass(frozen=True, eq=False)
class Kept:
    """A sequence's tokens, its state, and its checkpoints."""

    tokens: array[int]
    state: bytearray
    checkpoints: tuple[Checkpoint, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        return tuple(one.n for one in self.checkpoints)

    @property
    def n_bytes(self) -> int:
        return len(self.state) + sum(len(one.state) for one in self.checkpoints)


def last_before(places: Sequence[int], n: int) -> int:
    """The last place that is no later than n; 0 where there is none."""
    return max((place for place in places if place <= n), default=0)


def stops(begin: int, end: int, n_batch: int) -> Iterator[int]:
    """Where computing a prompt's tokens from begin to end pauses for a checkpoint; the last is its end.

    All but the end are between two batches, so that what is computed from them on is computed in the same batches.
    The last batch begins with one: the same prompt may be asked again.
    """
    n_step = -(-STEP_TOKENS // n_batch) * n_batch
    last = begin + (end - begin - 1) // n_batch * n_batch
    yield from range(begin + n_step, last, n_step)
    if last > begin:
        yield last
    yield end


class Trail:
    """The checkpoints of one sequence, in the order of their tokens."""

    def __init__(self) -> None:
        self.checkpoints: tuple[Checkpoint, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        return tuple(one.n for one in self.checkpoints)

    @property
    def n_bytes(self) -> int:
        return sum(len(one.state) for one in self.checkpoints)

    def at(self, n: int) -> Checkpoint:
        return next(one for one in self.checkpoints if one.n == n)

    def cut(self, n: int) -> None:
        """The sequence has n tokens: what is of more is of no sequence."""
        self.checkpoints = tuple(one for one in self.checkpoints if one.n <= n)

    def add(self, checkpoint: Checkpoint, max_bytes: int) -> None:
        """Remember one more, of a later token than all others, and forget what is more than max_bytes."""
        self.checkpoints = thinned((*self.checkpoints, checkpoint), max_bytes)


def thinned(checkpoints: tuple[Checkpoint, ...], max_bytes: int) -> tuple[Checkpoint, ...]:
    """As many as fit, as evenly as may be: the first goes whose neighbours are closest. The last goes last."""
    kept = list(checkpoints)
    while kept and sum(len(one.state) for one in kept) > max_bytes:
        before = [0, *(one.n for one in kept)]
        gaps = [after.n - before[i] for i, after in enumerate(kept[1:])]
        del kept[gaps.index(min(gaps)) if gaps else 0]
    return tuple(kept)
