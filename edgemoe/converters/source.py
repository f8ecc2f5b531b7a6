"""What a conversion reads: metadata, dense tensors and experts, each a matrix that is read a few rows at a time.

Rows come from files by `pread`, not through a mapping: a failed read is an error in words and not the end of the
process, and what a conversion holds is what it asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, StorageError
from ..files import drop_cached, open_fd, read_at
from .ggml import Bytes, row_bytes
from .gguf_header import Value

ROLES = ("gate_up", "up", "gate", "down")
"""Of an expert's matrices, in the order in which llama.cpp multiplies by them."""

Key = tuple[int, str, str]
"""(block, "exps", role): all experts of one matrix of one layer."""


class Rows(Protocol):
    """A matrix that can be read. type: the ggml type its rows come in."""

    @property
    def n_row(self) -> int: ...
    @property
    def n_col(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def whole_bytes(self) -> int:
        """What `load` holds beside its result, however few rows are asked for."""

    def load(self, begin: int, end: int) -> Bytes:
        """Rows begin..end as bytes [end - begin, row_bytes(type, n_col)]. Raises StorageError."""


@dataclass(frozen=True)
class DenseTensor:
    """A tensor that is not a routed expert. ne: ggml's order."""

    name: str
    ne: tuple[int, ...]
    rows: Rows


@dataclass(frozen=True)
class Source:
    """A model to convert.

    is_gguf: types of the file are the ones to keep unless another is asked for. experts: a matrix an expert.
    files: identity of each (real path, size, modification time in ns). facts: for the log, not for the file.
    """

    path: Path
    is_gguf: bool
    architecture: str
    values: Mapping[str, Value]
    dense: tuple[DenseTensor, ...]
    experts: Mapping[Key, tuple[Rows, ...]]
    files: tuple[tuple[str, int, int], ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_weight(self) -> int:
        """Weights of all tensors."""
        experts = sum(rows.n_row * rows.n_col for stack in self.experts.values() for rows in stack)
        return experts + sum(tensor.rows.n_row * tensor.rows.n_col for tensor in self.dense)


class SourceFile:
    """A file that is read at given places by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = open_fd(path, os.O_RDONLY)
        except OSError as error:
            raise StorageError(f"cannot read `{path}`: {error.strerror}") from None

    def read(self, offset: int, n_bytes: int) -> Bytes:
        """Exactly these bytes. Raises StorageError."""
        out = np.empty(n_bytes, np.uint8)
        view, done = out.data, 0
        while done < n_bytes:
            try:
                got = read_at(self._fd, view[done:], offset + done)
            except OSError as error:
                raise StorageError(f"cannot read `{self.path}`: {error.strerror}") from None
            if got == 0:
                raise StorageError(
                    f"`{self.path}` ends at byte {offset + done}, before its header says",
                    hint="it was cut while it was read",
                )
            done += got
        return out

    def drop(self, offset: int, n_bytes: int) -> None:
        """These bytes will not be read again soon: they need not stay in the page cache."""
        drop_cached(self._fd, offset, n_bytes)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


@dataclass(frozen=True)
class FileRows:
    """Rows that lie in a file one after the other."""

    file: SourceFile
    offset: int
    type: str
    n_row: int
    n_col: int
    whole_bytes: int = 0

    def load(self, begin: int, end: int) -> Bytes:
        stride = row_bytes(self.type, self.n_col)
        at, n = self.offset + begin * stride, (end - begin) * stride
        raw = self.file.read(at, n).reshape(end - begin, stride)
        self.file.drop(at, n)
        return raw


@dataclass(frozen=True)
class _Picked:
    """A part of a matrix, in an order of its own."""

    base: Rows
    picked: npt.NDArray[np.int64]

    @property
    def n_row(self) -> int:
        return self.base.n_row

    @property
    def n_col(self) -> int:
        return self.base.n_col

    @property
    def type(self) -> str:
        return self.base.type

    @property
    def whole_bytes(self) -> int:
        return self.base.whole_bytes


class PickedRows(_Picked):
    """Some rows: halves of fused matrices, heads in another order."""

    @property
    def n_row(self) -> int:
        return len(self.picked)

    def load(self, begin: int, end: int) -> Bytes:
        wanted = self.picked[begin:end]
        first, last = int(wanted.min()), int(wanted.max())
        raw = self.base.load(first, last + 1)
        if last - first + 1 == len(wanted) and (np.diff(wanted) == 1).all():
            return raw
        return raw[wanted - first]


class PickedColumns(_Picked):
    """Some columns of a matrix of plain numbers: an expert each, in a router's bias."""

    @property
    def n_col(self) -> int:
        return len(self.picked)

    def load(self, begin: int, end: int) -> Bytes:
        raw = self.base.load(begin, end)
        values = raw.reshape(len(raw), self.base.n_col, row_bytes(self.type, 1))[:, self.picked]
        return np.ascontiguousarray(values).reshape(len(raw), -1)


def check_same_shape(stack: tuple[Rows, ...], name: str) -> None:
    """Raises FormatError when the experts of a matrix differ in shape."""
    for expert, rows in enumerate(stack):
        if (rows.n_row, rows.n_col) != (stack[0].n_row, stack[0].n_col):
            raise FormatError(
                f"`{name}` is {rows.n_row} x {rows.n_col} in expert {expert}, {stack[0].n_row} x {stack[0].n_col} in "
                "expert 0"
            )
