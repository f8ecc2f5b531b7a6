"""safetensors files: the header, read as if an enemy had written it, and where each tensor's bytes are."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, StorageError
from .source import SourceFile

MAX_HEADER = 100 << 20  # the format's own limit
SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4,
    "U64": 8, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
_HINT = "the file may be incomplete: compare its size, or download or copy it again"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `shape` in the checkpoint's order, rows last."""

    name: str
    file: SourceFile
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read(path: Path) -> tuple[dict[str, Stored], tuple[str, int, int]]:
    """The tensors of a file by name, and the file's identity. Raises StorageError, FormatError."""
    file = SourceFile(path)
    try:
        status = path.stat()
        with path.open("rb") as stream:
            raw_length = stream.read(8)
            length = struct.unpack("<Q", raw_length)[0] if len(raw_length) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, status.st_size - 8):
                raise FormatError(
                    f"`{path}` is no safetensors file, or is truncated: its header has no end", hint=_HINT
                )
            header = json.loads(stream.read(length), object_pairs_hook=_once)
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the header of `{path}` is damaged: {str(error)[:80]}", hint=_HINT) from None
    if not isinstance(header, dict):
        raise FormatError(f"the header of `{path}` is damaged: it is not an object", hint=_HINT)
    header.pop("__metadata__", None)
    base, room = 8 + length, status.st_size - 8 - length
    tensors = {name: _tensor(path, file, name, entry, base, room) for name, entry in header.items()}
    _check_overlaps(path, tensors)
    return tensors, (os.path.realpath(path), status.st_size, status.st_mtime_ns)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two entries are called `{next(n for n in names if names.count(n) > 1)}`")
    return value


def _tensor(path: Path, file: SourceFile, name: str, entry: Any, base: int, room: int) -> Stored:
    bad = FormatError(
        f"the header of `{path}` is damaged: `{name[:80]}` has no sound type, shape and place", hint=_HINT
    )
    if not isinstance(entry, dict):
        raise bad
    dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(dtype, str) and _naturals(shape) and _naturals(place)):
        raise bad
    assert isinstance(shape, list) and isinstance(place, list)
    if len(place) != 2 or len(shape) > 8:
        raise bad
    if dtype not in SIZES:
        raise FormatError(f"`{name}` in `{path}` has the unknown type {dtype[:20]}")
    n_bytes = SIZES[dtype]
    for size in shape:
        n_bytes *= size
    if place[1] - place[0] != n_bytes:
        raise bad
    if place[1] > room:
        raise FormatError(
            f"`{path}` is truncated: tensor `{name}` ends at byte {base + place[1]}, the file at {base + room}",
            hint=_HINT,
        )
    return Stored(name, file, dtype, tuple(shape), base + place[0])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 50 for item in value)


def _check_overlaps(path: Path, tensors: dict[str, Stored]) -> None:
    end = 0
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        n_bytes = SIZES[tensor.dtype]
        for size in tensor.shape:
            n_bytes *= size
        if tensor.offset < end and n_bytes:
            raise FormatError(
                f"the header of `{path}` is damaged: `{tensor.name}` lies inside another tensor", hint=_HINT
            )
        end = max(end, tensor.offset + n_bytes)
