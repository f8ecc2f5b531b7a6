"""ggml's types, quantizers and dequantizers, through the library that libedgemoe uses.

The calls release the interpreter's lock, so threads of Python quantize on all cores.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import FormatError, NativeError, UsageError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# (weights, bytes) of a block. The integer types stand in files and are never converted.
_SIZES: dict[str, tuple[int, int]] = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
TYPE_NAMES: dict[int, str] = {int(kind): kind.name for kind in gguf.GGML_QUANT_SIZES}
_IDS = {name: number for number, name in TYPE_NAMES.items()}
PLAIN = ("F32", "F16", "BF16")
TARGETS = (
    *PLAIN, "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4", "Q3_K",
    "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0",
)  # fmt: skip
"""Types that a conversion can write, most bits first."""


def type_id(name: str) -> int:
    """ggml's number of a type."""
    return _IDS[name]


def target_type(name: str) -> str:
    """A type name as the user wrote it. Raises UsageError."""
    upper = name.upper()
    if upper not in TARGETS:
        raise UsageError(f"`{name}` is not a type for weights", hint=f"one of {', '.join(TARGETS)}")
    return upper


def fits(name: str, n_col: int) -> bool:
    """Whether rows of `n_col` weights divide into the type's blocks."""
    return n_col % _SIZES[name][0] == 0


def row_bytes(name: str, n_col: int) -> int:
    """Bytes of a row. Raises FormatError when it does not divide into the type's blocks."""
    block, size = _SIZES[name]
    if n_col % block:
        raise FormatError(f"rows of {n_col} weights do not divide into {name} blocks of {block}")
    return n_col // block * size


def bits(name: str) -> float:
    """Bits a weight."""
    block, size = _SIZES[name]
    return 8 * size / block


def block_weights(name: str) -> int:
    """Weights of a block."""
    return _SIZES[name][0]


def block_bytes(name: str) -> int:
    """Bytes of a block."""
    return _SIZES[name][1]


class _Traits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(str(_native.ggml_library()))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return library


def requires_importance(name: str) -> bool:
    """Whether ggml refuses to quantize to the type without an importance matrix."""
    return bool(_library().ggml_quantize_requires_imatrix(type_id(name)))


def quantize(values: Floats, name: str, importance: Floats | None = None) -> Bytes:
    """Rows of float32 in a type, as bytes [n_row, row_bytes]. importance: one weight a column."""
    n_row, n_col = values.shape
    values = np.ascontiguousarray(values, np.float32)
    out = np.empty((n_row, row_bytes(name, n_col)), np.uint8)
    if importance is None and requires_importance(name):
        importance = np.ones(n_col, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    written = _library().ggml_quantize_chunk(
        type_id(name), values.ctypes.data, out.ctypes.data, 0, n_row, n_col,
        None if weights is None else weights.ctypes.data,
    )  # fmt: skip
    if written != out.nbytes:
        raise NativeError(f"ggml wrote {written} bytes of {name} where {out.nbytes} were due")
    return out


def dequantize(raw: Bytes, name: str, n_col: int) -> Floats:
    """Rows in a type as float32 [n_row, n_col]."""
    if name == "F32":
        return raw.view(np.float32).reshape(-1, n_col)
    out = np.empty((raw.shape[0], n_col), np.float32)
    raw = np.ascontiguousarray(raw)
    _library().ggml_get_type_traits(type_id(name)).contents.to_float(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def can_dequantize(name: str) -> bool:
    """Whether weights of the type can become others."""
    return name in TARGETS
