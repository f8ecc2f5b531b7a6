"""Write a GGUF again with other metadata, other tensors, or lies about them: what gguf's writer would not make."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tinymoe
from gguf import GGMLQuantizationType as QuantType

_SCALAR = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32
F32, U32, F64, STRING, BOOL = 6, 4, 12, 8, 7
"""Types of values, for `Parts.keys`."""


@dataclass(frozen=True)
class TensorPart:
    """One tensor as the file has it: shape in GGUF's order (row length first), its ggml type, its bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: bytes


@dataclass
class Parts:
    """A GGUF taken apart. A key's value goes with its type; an array's type is (9, the type of its elements)."""

    keys: dict[str, tuple[tuple[int, ...], Any]] = field(default_factory=dict)
    tensors: list[TensorPart] = field(default_factory=list)

    def set(self, key: str, kind: int, value: object) -> None:
        """Set or add a scalar."""
        self.keys[key] = ((kind,), value)

    def change(self, name: str, change: Callable[[TensorPart], TensorPart]) -> None:
        """Replace the tensor of this name by what `change` makes of it."""
        assert any(t.name == name for t in self.tensors), name
        self.tensors = [change(t) if t.name == name else t for t in self.tensors]

    def retype(self, name: str, kind: str) -> None:
        """Store a tensor in another type: its values where ggml quantizes to that, else zeros of the right size."""
        self.change(name, lambda t: _retyped(t, QuantType[kind]))

    def rename_arch(self, arch: str) -> None:
        """Call the architecture, and so its keys, otherwise."""
        old = str(self.keys["general.architecture"][1])
        self.keys = {
            (arch + key[len(old) :] if key.startswith(old + ".") else key): value for key, value in self.keys.items()
        }
        self.set("general.architecture", STRING, arch)

    def write(self, path: Path) -> Path:
        """Write the file."""
        out = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(self.tensors), len(self.keys)))
        for key, (types, value) in self.keys.items():
            out += _text(key) + struct.pack("<I", types[0]) + _value(types, value)
        data = bytearray()
        for tensor in self.tensors:
            out += _text(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            out += struct.pack("<IQ", tensor.type, len(data))
            data += tensor.data + bytes(-len(tensor.data) % _ALIGNMENT)
        out += bytes(-len(out) % _ALIGNMENT)
        path.write_bytes(bytes(out + data))
        return path


def take_apart(path: Path) -> Parts:
    """Read a file of one part."""
    reader = gguf.GGUFReader(path)
    parts = Parts()
    for key, item in reader.fields.items():
        if not key.startswith("GGUF."):
            parts.keys[key] = (tuple(int(t) for t in item.types), item.contents())
    for t in reader.tensors:
        shape = tuple(int(n) for n in t.shape)
        parts.tensors.append(TensorPart(t.name, shape, int(t.tensor_type), np.ascontiguousarray(t.data).tobytes()))
    return parts


def edited(source: Path, to: Path, change: Callable[[Parts], None]) -> Path:
    """The file as `change` leaves it."""
    parts = take_apart(source)
    change(parts)
    return parts.write(to)


def renamed(names: Mapping[str, str], tensors: list[TensorPart]) -> list[TensorPart]:
    """The tensors under other names."""
    return [replace(t, name=names.get(t.name, t.name)) for t in tensors]


def _retyped(tensor: TensorPart, kind: QuantType) -> TensorPart:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values = int(np.prod(tensor.shape))
    assert tensor.shape[0] % block == 0, (tensor.name, kind)
    data = bytes(values // block * size)
    if kind not in (QuantType.F64, QuantType.I32, QuantType.I64, QuantType.I8, QuantType.I16, QuantType.Q8_K):
        stored = np.frombuffer(tensor.data, np.uint8).reshape(*reversed(tensor.shape[1:]), -1)
        floats = gguf.dequantize(stored, QuantType(tensor.type))
        data = tinymoe.quantize(floats.reshape(*reversed(tensor.shape)), kind).tobytes()
    return TensorPart(tensor.name, tensor.shape, int(kind), data)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(types: tuple[int, ...], value: Any) -> bytes:
    if types[0] == _STRING:
        return _text(value)
    if types[0] == _ARRAY:
        inner = types[1:]
        return struct.pack("<IQ", inner[0], len(value)) + b"".join(_value(inner, v) for v in value)
    return struct.pack("<" + _SCALAR[types[0]], value)
