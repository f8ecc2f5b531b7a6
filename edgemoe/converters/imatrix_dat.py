"""The form of importance matrices that `llama-imatrix` wrote until 2025 (`imatrix.dat`): flat arrays by name.

A count of entries, then of each: length of the name, name, number of calls, number of values, values in float32 (mean
squares times calls). Of experts all columns are in one array, one after the other: how many there are, the model says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, StorageError
from .calibration import check_range
from .ggml import Floats

_TENSOR = re.compile(r"blk\.(\d{1,6})\.ffn_(gate_up|gate|up|down)_exps\.weight")
_MAX_NAME = 256
_MAX_ENTRY = 1 << 20


@dataclass(frozen=True)
class Entries:
    """columns: by block and role, [n_expert, n_col], mean squares. n_dense: entries of matrices that are no experts."""

    columns: Mapping[tuple[int, str], Floats]
    n_dense: int


def looks_like(path: Path) -> bool:
    """Whether the file begins as one: a count, then a name with its length. Raises StorageError."""
    try:
        with path.open("rb") as stream:
            head = stream.read(8 + _MAX_NAME)
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}") from None
    n_entry, length = (int.from_bytes(head[i : i + 4], "little") for i in (0, 4))
    name = head[8 : 8 + length]
    return 0 < n_entry < _MAX_ENTRY and 0 < length <= _MAX_NAME and len(name) == length and name.endswith(b".weight")


def read(path: Path, n_experts: Mapping[tuple[int, str], int]) -> Entries:
    """n_experts: of the model's matrices, by block and role. Raises StorageError, FormatError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}") from None
    columns: dict[tuple[int, str], Floats] = {}
    n_dense = 0
    for name, n_call, values in _entries(path, raw):
        match = _TENSOR.fullmatch(name)
        if match is None:
            n_dense += 1
            continue
        key = int(match[1]), match[2]
        n_expert = n_experts.get(key, 1)  # of another model: refused when it is compared
        if len(values) % n_expert:
            raise _damaged(path, f"`{name}` has {len(values)} values, which {n_expert} experts do not share evenly")
        try:
            check_range(f"values of `{name}`", values)
        except FormatError as error:
            raise _damaged(path, error.message) from None
        columns[key] = np.asarray(values.reshape(n_expert, -1) / max(1, n_call), np.float32)
    return Entries(columns, n_dense)


def _entries(path: Path, raw: bytes) -> Iterator[tuple[str, int, Floats]]:
    at = 0

    def take(n: int) -> bytes:
        nonlocal at
        if n < 0 or n > len(raw) - at:
            raise _damaged(path, f"it ends at byte {len(raw)}, inside an entry")
        at += n
        return raw[at - n : at]

    def number() -> int:
        return int.from_bytes(take(4), "little", signed=True)

    n_entry = number()
    for _ in range(n_entry):
        length = number()
        if not 0 < length <= _MAX_NAME:
            raise _damaged(path, f"a name of {length} bytes")
        try:
            name = take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _damaged(path, "a name is no text") from None
        n_call = number()
        yield name, n_call, np.frombuffer(take(4 * number()), "<f4")


def _damaged(path: Path, why: Any) -> FormatError:
    return FormatError(
        f"the importance matrix `{path}` is damaged: {why}", hint="make it again with `llama-imatrix` of today"
    )
