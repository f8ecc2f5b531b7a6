"""Matrices of a checkpoint that are not stored as GGUF wants them: transposed, scaled, packed, cut out of others."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ..errors import FormatError, UnsupportedError
from .ggml import Bytes, dequantize, row_bytes
from .safetensors_file import Stored
from .source import FileRows, Rows, SourceFile

GGML = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
FP8_BLOCK = 128  # weights, in both directions, that share a scale


def rows_of(stored: Stored, scales: Stored | None = None) -> Rows:
    """All of a tensor as rows of its last dimension. scales: of a tensor in 8-bit floats, one a block of 128 x 128."""
    n_col = stored.shape[-1] if stored.shape else 1
    n_row = count(stored.shape[:-1])
    if n_col < 1 or n_row < 1:
        raise FormatError(f"`{stored.name}` is empty")
    if stored.dtype in GGML:
        return FileRows(stored.file, stored.offset, GGML[stored.dtype], n_row, n_col)
    if stored.dtype == "F8_E4M3" and scales is not None and len(stored.shape) == 2:
        return Fp8Rows(stored, scales)
    raise UnsupportedError(
        f"`{stored.name}` is stored as {stored.dtype}", hint="F32, F16, BF16 and scaled F8_E4M3 are read"
    )


def count(shape: tuple[int, ...]) -> int:
    """Elements of a shape."""
    n = 1
    for size in shape:
        n *= size
    return n


def slice_of(stored: Stored, index: int, n: int) -> Stored:
    """Element `index` of `n` along the first dimension of a tensor."""
    size = {"U8": 1, "F32": 4, "F16": 2, "BF16": 2}.get(stored.dtype)
    if size is None or not stored.shape or stored.shape[0] != n:
        raise UnsupportedError(f"`{stored.name}` is stored as {stored.dtype} {list(stored.shape)}")
    inner = stored.shape[1:]
    return Stored(stored.name, stored.file, stored.dtype, inner, stored.offset + index * count(inner) * size)


@functools.cache
def _e4m3() -> np.ndarray:
    """Values of the 256 codes: sign, 4 bits of exponent biased by 7, 3 of mantissa; 0x7f and 0xff are no numbers."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value[(code & 127) == 127] = np.nan
    return np.where(code & 128, -value, value).astype(np.float32)


@dataclass(frozen=True)
class Fp8Rows:
    """8-bit floats with a scale a block of 128 x 128, as DeepSeek-V3 is published."""

    stored: Stored
    scales: Stored
    type: str = "F32"

    def __post_init__(self) -> None:
        blocks = tuple(-(-size // FP8_BLOCK) for size in self.stored.shape)
        if self.scales.dtype not in GGML or self.scales.shape != blocks:
            raise FormatError(
                f"`{self.scales.name}` is {self.scales.dtype} {list(self.scales.shape)}, {list(blocks)} are due"
            )

    @property
    def n_row(self) -> int:
        return self.stored.shape[0]

    @property
    def n_col(self) -> int:
        return self.stored.shape[1]

    @property
    def whole_bytes(self) -> int:
        return 0

    def load(self, begin: int, end: int) -> Bytes:
        file, n_col, n_block = self.stored.file, self.n_col, self.scales.shape[1]
        codes = file.read(self.stored.offset + begin * n_col, (end - begin) * n_col).reshape(-1, n_col)
        file.drop(self.stored.offset + begin * n_col, (end - begin) * n_col)
        first, last = begin // FP8_BLOCK, (end - 1) // FP8_BLOCK + 1
        kind = GGML[self.scales.dtype]
        stride = row_bytes(kind, n_block)
        raw = self.scales.file.read(self.scales.offset + first * stride, (last - first) * stride)
        scales = dequantize(raw.reshape(-1, stride), kind, n_block)[np.arange(begin, end) // FP8_BLOCK - first]
        values = _e4m3()[codes] * np.repeat(scales, FP8_BLOCK, axis=1)[:, :n_col]
        return np.ascontiguousarray(values, np.float32).view(np.uint8)


@dataclass(frozen=True)
class TransposedRows:
    """The columns first, first + step, ... of a stored matrix as rows."""

    base: FileRows
    first: int = 0
    step: int = 1

    @property
    def n_row(self) -> int:
        return -(-(self.base.n_col - self.first) // self.step)

    @property
    def n_col(self) -> int:
        return self.base.n_row

    @property
    def type(self) -> str:
        return self.base.type

    @property
    def whole_bytes(self) -> int:
        return 2 * self.base.n_row * self.base.n_col * _element(self.type).itemsize

    def load(self, begin: int, end: int) -> Bytes:
        matrix = self.base.load(0, self.base.n_row).view(_element(self.type))
        columns = matrix[:, self.first :: self.step][:, begin:end]
        return np.ascontiguousarray(columns.T).view(np.uint8)


def _element(kind: str) -> np.dtype:
    return np.dtype(np.uint32 if kind == "F32" else np.uint16)


@dataclass(frozen=True)
class KeyHalf:
    """DeepSeek's kv_b_proj holds, for each head, rows that make keys and rows that make values. llama.cpp wants the
    keys' transposed: row (head, rank) of n_key columns. Values need no class: they are picked rows."""

    base: Rows
    n_head: int
    n_key: int
    n_value: int
    type: str = "F32"

    @property
    def n_row(self) -> int:
        return self.n_head * self.base.n_col

    @property
    def n_col(self) -> int:
        return self.n_key

    @property
    def whole_bytes(self) -> int:
        return 4 * 4 * self.base.n_row * self.base.n_col

    def load(self, begin: int, end: int) -> Bytes:
        values = dequantize(self.base.load(0, self.base.n_row), self.base.type, self.base.n_col)
        heads = values.reshape(self.n_head, self.n_key + self.n_value, -1)[:, : self.n_key]
        rows = np.ascontiguousarray(heads.transpose(0, 2, 1)).reshape(self.n_row, self.n_key)
        return rows[begin:end].view(np.uint8)


@dataclass(frozen=True)
class Mxfp4Rows:
    """gpt-oss's packed experts as ggml's MXFP4: bits are moved, none is lost.

    Stored: 16 bytes a block of 32, byte i holds weights 2i (low half) and 2i+1; the exponents lie apart. In ggml a
    block is its exponent, then 16 bytes of which byte i holds weights i and i + 16. Rows first, first + step, ... are
    taken.
    """

    file: SourceFile
    offset: int
    scale_file: SourceFile
    scale_offset: int
    n_stored: int
    n_col: int
    first: int = 0
    step: int = 1
    type: str = "MXFP4"
    whole_bytes: int = 0

    @property
    def n_row(self) -> int:
        return -(-(self.n_stored - self.first) // self.step)

    def load(self, begin: int, end: int) -> Bytes:
        n_block = self.n_col // 32
        low, high = self.first + begin * self.step, self.first + (end - 1) * self.step + 1
        size = (high - low) * n_block
        packed = self.file.read(self.offset + low * n_block * 16, size * 16).reshape(-1, n_block, 16)[:: self.step]
        exponents = self.scale_file.read(self.scale_offset + low * n_block, size).reshape(-1, n_block, 1)[:: self.step]
        codes = np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:2], 32)
        out = np.concatenate((exponents, codes[..., :16] | codes[..., 16:] << 4), axis=-1)
        return np.ascontiguousarray(out).reshape(end - begin, n_block * 17)
