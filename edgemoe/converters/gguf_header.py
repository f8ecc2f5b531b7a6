"""Headers of GGUF files: read as if an enemy had written them, written byte for byte. Never tensor data.

Metadata values stay encoded, so that what is only passed on (vocabularies of 150,000 tokens) is neither decoded nor
changed. The gguf package's reader makes two arrays a string and believes every count; this one does not.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import FormatError, StorageError
from ..printable import whole_characters
from .ggml import TYPE_NAMES, row_bytes, type_id

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32  # where `general.alignment` is absent
MAX_NAME = 63  # ggml keeps names in 64 bytes
MAX_HEADER = 1 << 30  # bytes; the largest vocabularies take 10 MB
MAX_TENSOR_BYTES = 1 << 50

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10


@dataclass(frozen=True)
class Value:
    """A metadata value as it stands in the file: its type number, and its bytes after that number."""

    kind: int
    raw: bytes


@dataclass(frozen=True)
class TensorInfo:
    """A tensor: `ne` is ggml's order, row length first. offset: from the beginning of its file."""

    name: str
    ne: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int

    @property
    def n_col(self) -> int:
        """Length of a row."""
        return self.ne[0]

    @property
    def n_row(self) -> int:
        """Rows of all higher dimensions together."""
        n = 1
        for size in self.ne[1:]:
            n *= size
        return n


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself."""

    path: Path
    values: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    file_bytes: int
    identity: tuple[str, int, int]  # real path, size, modification time in ns


def encode(value: Any, kind: int | None = None) -> Value:
    """A Python value as metadata: int is UINT32 unless `kind` says otherwise, float FLOAT32, lists are arrays.

    Text that is no Unicode (a file's name from an old disk) gets replacement characters. Raises TypeError for an array
    of several kinds, struct.error or OverflowError for a number that the kind does not hold.
    """
    if isinstance(value, (list, tuple)):
        first = encode(value[0], kind) if value else Value(kind if kind is not None else STRING, b"")
        if first.kind in _SCALARS:
            body = struct.pack(f"<{len(value)}{_SCALARS[first.kind]}", *value)
        elif first.kind == STRING and all(isinstance(item, (str, bytes)) for item in value):
            body = b"".join(encode(item).raw for item in value)
        else:
            raise TypeError("an array of values of several kinds")
        return Value(ARRAY, struct.pack("<IQ", first.kind, len(value)) + body)
    if isinstance(value, (str, bytes)):
        raw = whole_characters(value).encode("utf-8") if isinstance(value, str) else value
        return Value(STRING, struct.pack("<Q", len(raw)) + raw)
    if kind is None:
        kind = BOOL if isinstance(value, bool) else UINT32 if isinstance(value, int) else FLOAT32
    return Value(kind, struct.pack("<" + _SCALARS[kind], value))


def decode(value: Value | None) -> Any:
    """The Python value of a scalar, a string, or an array of scalars; None for others and for None."""
    if value is None:
        return None
    if value.kind == STRING:
        return value.raw[8:].decode("utf-8", "replace")
    if value.kind == ARRAY:
        kind, n = struct.unpack_from("<IQ", value.raw)
        if kind not in _SCALARS:
            return None
        return list(struct.unpack_from(f"<{n}{_SCALARS[kind]}", value.raw, 12))
    return struct.unpack("<" + _SCALARS[value.kind], value.raw)[0]


def decode_strings(value: Value | None) -> list[str]:
    """An array of strings, [] for anything else."""
    if value is None or value.kind != ARRAY or struct.unpack_from("<I", value.raw)[0] != STRING:
        return []
    n, at, out = struct.unpack_from("<Q", value.raw, 4)[0], 12, []
    for _ in range(n):
        (length,) = struct.unpack_from("<Q", value.raw, at)
        out.append(value.raw[at + 8 : at + 8 + length].decode("utf-8", "replace"))
        at += 8 + length
    return out


def read(path: Path) -> Header:
    """Parse and check a header. Raises StorageError, or FormatError in one line for anything that is wrong with it."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            cursor = _Cursor(path, file, status.st_size)
            return _parse(cursor, (os.path.realpath(path), status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}") from None


class _Cursor:
    """Takes values from the beginning of a file, and never past its end."""

    def __init__(self, path: Path, file: BinaryIO, file_bytes: int) -> None:
        self.path, self.file_bytes, self.at = path, file_bytes, 0
        self._file, self._have = file, bytearray()

    def bad(self, what: str) -> FormatError:
        return FormatError(
            f"the header of `{self.path}` cannot be read: {what}",
            hint="the file may be incomplete: compare its size, or download or copy it again",
        )

    def need(self, n: int) -> None:
        end = self.at + n
        if end > min(self.file_bytes, MAX_HEADER):
            raise self.bad(f"it ends in the middle, at byte {self.file_bytes}")
        while len(self._have) < end:
            block = self._file.read(max(1 << 20, end - len(self._have)))
            if not block:
                raise self.bad(f"it ends in the middle, at byte {len(self._have)}")
            self._have += block

    def take(self, n: int) -> bytes:
        self.need(n)
        self.at += n
        return bytes(self._have[self.at - n : self.at])

    def number(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]
        return value

    def string(self) -> bytes:
        return self.take(self.number("Q"))

    def skip_string(self) -> None:
        self.need(8)
        (length,) = struct.unpack_from("<Q", self._have, self.at)
        self.need(8 + length)
        self.at += 8 + length

    def since(self, begin: int) -> bytes:
        return bytes(self._have[begin : self.at])


def _parse(cursor: _Cursor, identity: tuple[str, int, int]) -> Header:
    path = cursor.path
    if cursor.file_bytes < 4 or cursor.take(4) != MAGIC:
        raise FormatError(f'`{path}` is not a GGUF file: it does not begin with "GGUF"')
    version = cursor.number("I")
    if version not in (2, 3):
        raise cursor.bad(f"version {version} of GGUF, versions 2 and 3 are known")
    n_tensor, n_value = cursor.number("Q"), cursor.number("Q")
    # The smallest tensor entry takes 32 bytes, the smallest value 13.
    if n_tensor * 32 + n_value * 13 > cursor.file_bytes:
        raise cursor.bad(f"it announces {n_tensor} tensors and {n_value} values in {cursor.file_bytes} bytes")
    values = _values(cursor, n_value)
    alignment = decode(values.get("general.alignment")) or ALIGNMENT
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise cursor.bad(f"an alignment of {alignment}")
    entries = [_entry(cursor) for _ in range(n_tensor)]
    base = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, ne, kind, offset in entries:
        tensor = _check(cursor, name, ne, kind, offset, base, alignment)
        if name in tensors:
            raise cursor.bad(f"two tensors are called `{name}`")
        tensors[name] = tensor
    return Header(path, values, tuple(tensors.values()), alignment, cursor.file_bytes, identity)


def _values(cursor: _Cursor, n: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for _ in range(n):
        key = _text(cursor, cursor.string())
        if key in values:
            raise cursor.bad(f"two values are called `{key}`")
        kind, begin = cursor.number("I"), cursor.at
        if kind in _SCALARS:
            cursor.take(struct.calcsize(_SCALARS[kind]))
        elif kind == STRING:
            cursor.skip_string()
        elif kind == ARRAY:
            _skip_array(cursor, key)
        else:
            raise cursor.bad(f"`{key}` has the unknown type {kind}")
        values[key] = Value(kind, cursor.since(begin))
    return values


def _skip_array(cursor: _Cursor, key: str) -> None:
    kind, n = cursor.number("I"), cursor.number("Q")
    if kind in _SCALARS:
        cursor.take(n * struct.calcsize(_SCALARS[kind]))
    elif kind == STRING and n * 8 <= cursor.file_bytes:
        for _ in range(n):
            cursor.skip_string()
    else:
        raise cursor.bad(f"`{key}` is an array of {n} values of type {kind}")


def _text(cursor: _Cursor, raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise cursor.bad("a name is not UTF-8") from None
    if not text or not text.isprintable():
        raise cursor.bad("a name is empty or holds control characters")
    return text


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = _text(cursor, cursor.string())
    n_dim = cursor.number("I")
    if not 1 <= n_dim <= 4:
        raise cursor.bad(f"`{name}` has {n_dim} dimensions")
    ne = tuple(cursor.number("Q") for _ in range(n_dim))
    return name, ne, cursor.number("I"), cursor.number("Q")


def _check(
    cursor: _Cursor, name: str, ne: tuple[int, ...], kind: int, offset: int, base: int, alignment: int
) -> TensorInfo:
    if len(name.encode()) > MAX_NAME:
        raise cursor.bad(f"the name `{name[:40]}…` is longer than {MAX_NAME} bytes")
    if kind not in TYPE_NAMES:
        raise cursor.bad(f"`{name}` has the unknown type {kind}")
    n_row = 1
    for size in ne[1:]:
        n_row *= size
    if min(ne) < 1 or ne[0] * n_row > MAX_TENSOR_BYTES:
        raise cursor.bad(f"`{name}` has the shape {' x '.join(map(str, ne))}")
    type_name = TYPE_NAMES[kind]
    try:
        n_bytes = n_row * row_bytes(type_name, ne[0])
    except FormatError as error:
        raise cursor.bad(f"`{name}`: {error.message}") from None
    if offset % alignment or offset > MAX_TENSOR_BYTES:
        raise cursor.bad(f"`{name}` begins at the odd place {offset}")
    if base + offset + n_bytes > cursor.file_bytes:
        raise FormatError(
            f"`{cursor.path}` is truncated: tensor `{name}` ends at byte {base + offset + n_bytes}, the file at "
            f"{cursor.file_bytes}",
            hint="the file may be incomplete: compare its size, or download or copy it again",
        )
    return TensorInfo(name, ne, type_name, base + offset, n_bytes)


def place(tensors: Sequence[tuple[str, tuple[int, ...], str]], alignment: int) -> tuple[list[int], int]:
    """Offsets from the beginning of the data, and the size of the data, as every reader of GGUF expects them."""
    offsets, at = [], 0
    for _, ne, type_name in tensors:
        offsets.append(at)
        n_row = 1
        for size in ne[1:]:
            n_row *= size
        at += -(-n_row * row_bytes(type_name, ne[0]) // alignment) * alignment
    return offsets, at


def build(values: Mapping[str, Value], tensors: Sequence[tuple[str, tuple[int, ...], str]], alignment: int) -> bytes:
    """The bytes of a header up to the data, padding included. `tensors`: name, ne, type."""
    offsets, _ = place(tensors, alignment)
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(values)))
    for key, value in values.items():
        out += encode(key).raw + struct.pack("<I", value.kind) + value.raw
    for (name, ne, type_name), offset in zip(tensors, offsets, strict=True):
        out += encode(name).raw + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, type_id(type_name), offset)
    return bytes(out) + bytes(-len(out) % alignment)
