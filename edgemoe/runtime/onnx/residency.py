"""Which experts of an export are in memory: pages of mapped files, filled and dropped expert by expert.

The experts' bytes are mapped by ONNX Runtime; dropping a page never breaks anything, since using it reads it again.
So this decides only what is resident, and the budget holds because whatever is not wanted is dropped, here and in the
page cache. Which expert goes is asked of the same policies as the native cache's.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ... import _native
from ...errors import BudgetError, StorageError
from ...files import drop_cached, open_fd
from .model import PAGE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
# Offset in the file, bytes, address.
Mapping = tuple[int, int, int]
# Held while a session is opened or closed. Another engine of the same export maps the same files.
MAPPING = threading.Lock()


def opened(path: Path, make: Callable[[], T]) -> tuple[T, list[Mapping]]:
    """What `make` makes, and what it mapped of a file.

    Only that may be dropped: what others mapped ends with them, and then anything may lie there.
    """
    with MAPPING:
        before = sorted(mappings_of(path), key=lambda mapping: mapping[2])
        made = make()
        return made, [piece for mapping in mappings_of(path) for piece in _without(mapping, before)]


def _without(mapping: Mapping, others: list[Mapping]) -> list[Mapping]:
    """The kernel shows neighbours that fit together as one."""
    offset, size, address = mapping
    pieces, begin, end = [], address, address + size
    for _, n, at in others:
        if at < end and at + n > begin:
            pieces.append((begin, at))
            begin = at + n
    pieces.append((begin, end))
    return [(offset + a - address, b - a, a) for a, b in pieces if a < b]


def mappings_of(path: Path) -> list[Mapping]:
    """Each mapping of a file in this process."""
    wanted = os.path.realpath(path)
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            parts = line.rstrip("\n").split(None, 5)
            if len(parts) == 6 and parts[5] == wanted:
                begin, end = (int(part, 16) for part in parts[0].split("-"))
                found.append((int(parts[2], 16), end - begin, begin))
    return found


class Residency:
    """Owns the residency of all experts. Any thread may call it.

    A mapped blob is a row of equal slices, one an expert; a page may hold parts of two. n_*: counters since the start.
    """

    def __init__(self, n_expert: Sequence[int], n_expert_used: int, policy: int) -> None:
        import numpy as np

        self._np = np
        self.first = [0]
        for n in n_expert:
            self.first.append(self.first[-1] + n)
        self._n = self.first[-1]
        self._policy = _native.policy_open(policy, n_expert, n_expert_used)
        self._lock = threading.RLock()
        self._ranges: list[list[tuple[int, int]]] = [[] for _ in range(self._n)]  # pages, numbered through
        self._addresses: list[tuple[int, int, int, int]] = []  # first page, address, end of mapping, offset
        self._fds: dict[Path, int] = {}
        self._fd_of: list[int] = []
        self._n_page = 0
        self._users: npt.NDArray[np.int16] = np.zeros(0, np.int16)  # resident experts that a page holds parts of
        self._sizes = np.zeros(self._n, np.int64)
        self._resident = np.zeros(self._n, bool)
        self._states = bytearray(self._n)
        self._limit = 0
        self.used_bytes = 0
        self.n_hit = self.n_miss = self.n_evict = self.n_read = self.read_bytes = self.stall_ns = 0

    # ------------------------------------------------------------------ what there is

    def add_layer(self, layer: int, file: Path, found: Sequence[Mapping], blobs: Iterable[dict[str, Any]]) -> None:
        """The experts of a layer, mapped by a session just opened. Raises StorageError when it mapped none."""
        if file not in self._fds:
            self._fds[file] = open_fd(file, os.O_RDONLY)
        for blob in blobs:
            offset, n_bytes, experts = blob["offset"], blob["n_bytes"], blob["experts"]
            place = next((m for m in found if m[0] <= offset and offset + n_bytes <= m[0] + m[1]), None)
            if place is None:
                continue  # packed away: only what is mapped is read when the model runs
            if n_bytes % len(experts) or n_bytes < 64 * len(experts):
                continue  # a note of a few bytes
            first, n_page = self._n_page, -(-n_bytes // PAGE)
            self._addresses.append((first, place[2] + offset - place[0], place[2] + place[1], offset))
            self._fd_of.append(self._fds[file])
            self._n_page += n_page
            size = n_bytes // len(experts)
            for i, expert in enumerate(experts):
                pages = (first + i * size // PAGE, first + ((i + 1) * size - 1) // PAGE + 1)
                self._ranges[self.first[layer] + expert].append(pages)
        for expert in range(self.first[layer], self.first[layer + 1]):
            if not self._ranges[expert]:
                raise StorageError(
                    f"ONNX Runtime did not take the packed experts of layer {layer}",
                    hint="remove the folder `onnx` of the cache, and start again",
                )
            self._sizes[expert] = PAGE * sum(end - begin for begin, end in self._ranges[expert])
        self._users = self._np.zeros(self._n_page, self._np.int16)
        self.forget(file, found)

    def forget(self, file: Path, mappings: Iterable[Mapping]) -> None:
        """Drop all pages of a file: opening a session has read them."""
        for _, size, address in mappings:
            _native.map_drop(address, size)
        fd = self._fds.get(file)
        if fd is not None:
            drop_cached(fd)

    # ------------------------------------------------------------------ use

    def visit(self, layer: int, n_token: int, experts: array[int], n_row: array[int], weight: array[float]) -> None:
        """A batch is about to use these experts of a layer: they are in memory when this returns."""
        with self._lock:
            first = self.first[layer]
            _native.policy_visit(self._policy, layer, n_token, experts, n_row, weight)
            wanted = [first + expert for expert in experts]
            missing = [expert for expert in wanted if not self._resident[expert]]
            self.n_hit += len(wanted) - len(missing)
            self.n_miss += len(missing)
            self._states[first : self.first[layer + 1]] = bytes(self.first[layer + 1] - first)
            for expert in wanted:
                self._states[expert] = 2
            if missing:
                self._make_room(int(self._sizes[missing].sum()), wanted)
                began = time.monotonic_ns()
                self._fill(missing)
                self.stall_ns += time.monotonic_ns() - began
                for expert in missing:
                    self._states[expert] = 6

    def _make_room(self, n_bytes: int, spared: Sequence[int]) -> None:
        excess = self.used_bytes + n_bytes - self._limit
        if excess <= 0:
            return
        badness = self._np.frombuffer(_native.policy_badness(self._policy, self._n), self._np.float32)
        candidates = self._resident.copy()
        candidates[spared] = False
        order = self._np.flatnonzero(candidates)
        order = order[self._np.argsort(-badness[order], kind="stable")]
        for expert in order:
            if excess <= 0:
                return
            excess -= int(self._sizes[expert])
            self._drop(int(expert))
            self.n_evict += 1

    def _fill(self, missing: Sequence[int]) -> None:
        """Read all of them: first say what will be wanted, so that the device works while pages are mapped."""
        places = [(expert, begin, end) for expert in missing for begin, end in self._ranges[expert]]
        for _, begin, end in places:
            _native.map_expect(*self._piece(begin, end))
        for _, begin, end in places:
            self._users[begin:end] += 1
            if not _native.map_fill(*self._piece(begin, end)):
                continue  # an old kernel: the pages come when they are used
        for expert in missing:
            self._resident[expert] = True
            size = int(self._sizes[expert])
            self.used_bytes += size
            self.read_bytes += size
            self.n_read += len(self._ranges[expert])

    def _drop(self, expert: int) -> None:
        for begin, end in self._ranges[expert]:
            self._users[begin:end] -= 1
            free = self._np.flatnonzero(self._users[begin:end] == 0)
            if not len(free):
                continue
            # Only the ends are shared, so what is free is in one piece.
            low, high = begin + int(free[0]), begin + int(free[-1]) + 1
            _native.map_drop(*self._piece(low, high))
            blob = self._blob(low)
            first, _, _, offset = self._addresses[blob]
            drop_cached(self._fd_of[blob], offset + (low - first) * PAGE, (high - low) * PAGE)
        self._resident[expert] = False
        self.used_bytes -= int(self._sizes[expert])

    def _blob(self, page: int) -> int:
        import bisect

        return bisect.bisect_right(self._addresses, (page, 1 << 62, 0, 0)) - 1

    def _piece(self, begin: int, end: int) -> tuple[int, int]:
        """Address and bytes of pages of one blob. Behind the mapping is memory of others, which a drop would zero."""
        first, address, mapping_end, _ = self._addresses[self._blob(begin)]
        address += (begin - first) * PAGE
        return address, min((end - begin) * PAGE, mapping_end - address)

    # ------------------------------------------------------------------ budget and state

    @property
    def least_bytes(self) -> int:
        """A layer's experts: any batch can be computed with that."""
        return max(int(self._sizes[a:b].sum()) for a, b in zip(self.first, self.first[1:], strict=False))

    def set_limit(self, n_bytes: int) -> None:
        """Keep no more than so many bytes from now on. Raises BudgetError when that is less than a layer's."""
        if n_bytes < self.least_bytes:
            raise BudgetError(
                f"an expert cache of {n_bytes:,} bytes is too small: one layer takes {self.least_bytes:,}",
                smallest=self.least_bytes,
            )
        with self._lock:
            self._limit = n_bytes
            self._make_room(0, ())

    @property
    def n_slot(self) -> int:
        """Experts of the mean size that fit."""
        return min(self._n, self._limit * self._n // max(1, int(self._sizes.sum())))

    @property
    def n_resident(self) -> int:
        return int(self._resident.sum())

    def resident(self, layer: int) -> int:
        return int(self._resident[self.first[layer] : self.first[layer + 1]].sum())

    def states(self, layer: int) -> bytes:
        """One byte of EXPERT_* bits an expert: 1 resident, 2 used in the layer's last visit, 4 read there."""
        begin, end = self.first[layer], self.first[layer + 1]
        return bytes(state | int(here) for state, here in zip(
            self._states[begin:end], self._resident[begin:end], strict=True))  # fmt: skip

    def rates(self) -> array[float]:
        with self._lock:
            return _native.policy_rates(self._policy)

    def warm_start(self, rates: array[float]) -> None:
        with self._lock:
            _native.policy_warm_start(self._policy, rates)

    def close(self) -> None:
        with self._lock:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()
            _native.policy_close(self._policy)
