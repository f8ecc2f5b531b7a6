"""Rows of floats to the codes that ONNX Runtime's kernels take: blocks of a row, a scale each, no zero point.

A weight is scale x (code - 2^(bits - 1)). The scale of a block is searched: that which leaves the least squared error
among some that its largest weight suggests, then the best for the codes found. Blocks that a symmetric ggml type made
(Q8_0, Q4_0) come out exactly as they were.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..ggml import Bytes, Floats

BITS = (2, 4, 8)
BLOCKS = (64, 32, 16)
"""Weights that share a scale, the first that divides a row. Smaller ones cost memory, and more after ORT's packing."""

# Scales tried: the block's largest weight, with its sign, over the lowest code; and these parts of it.
_PARTS = {
    8: (1.0,),
    4: (1.0, 0.95, 0.9, 0.85, 0.8, 1.05, -1.0, -0.9, -1.1),
    2: (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, -1.0, -0.85, -0.7, -1.2, -1.5),
}


def block_of(*lengths: int) -> int | None:
    """The block size for rows of these lengths, None when none fits."""
    return next((size for size in BLOCKS if all(length % size == 0 for length in lengths)), None)


def quantize(
    values: Floats, bits: int, block: int, importance: Floats | None = None, *, half_scales: bool = True
) -> tuple[Bytes, npt.NDArray[np.floating]]:
    """Codes, packed lowest bits first, uint8 [n_row, n_col * bits / 8], and scales [n_row, n_col / block].

    importance: one weight a column. half_scales: float16, else float32.
    """
    n_row, n_col = values.shape
    x = np.ascontiguousarray(values, np.float32).reshape(-1, block)
    weight = None
    if importance is not None:
        weight = np.tile(importance.reshape(-1, block).astype(np.float32), (n_row, 1))
    kind = np.float16 if half_scales else np.float32
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    largest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)[:, 0]
    best = np.full(len(x), np.inf, np.float32)
    scales = np.zeros(len(x), kind)
    codes = np.zeros(x.shape, np.int8)
    ends = [np.abs(largest) / high] if bits == 8 else []
    for first in (*ends, *(largest / low * np.float32(part) for part in _PARTS[bits])):
        scale = _stored(first, kind)
        for _ in range(1 if bits == 8 else 2):
            found = _codes(x, scale, low, high)
            error = _error(x, found, scale, weight)
            better = error < best
            best[better], scales[better], codes[better] = error[better], scale[better], found[better]
            scale = _stored(_fitted(x, found, weight), kind)
    packed = _pack((codes.astype(np.int16) - low).astype(np.uint8), bits).reshape(n_row, n_col * bits // 8)
    return packed, scales.reshape(n_row, n_col // block)


def dequantize(packed: Bytes, scales: npt.NDArray[np.floating], bits: int) -> Floats:
    """The values that codes stand for, float32 [n_row, n_col]."""
    per = 8 // bits
    shifts = bits * np.arange(per, dtype=np.uint8)
    codes = (packed[..., None] >> shifts & ((1 << bits) - 1)).reshape(*packed.shape[:-1], -1)
    block = codes.shape[-1] // scales.shape[-1]
    values = codes.astype(np.float32) - np.float32(1 << (bits - 1))
    found: Floats = (values.reshape(*scales.shape, block) * scales[..., None].astype(np.float32)).reshape(codes.shape)
    return found


def _stored(scale: Floats, kind: type[np.floating]) -> npt.NDArray[np.floating]:
    """As the file will have it, inside what it can hold."""
    if kind is np.float16:
        scale = np.clip(scale, -65504, 65504)
    return scale.astype(kind)


def _codes(x: Floats, scale: npt.NDArray[np.floating], low: int, high: int) -> npt.NDArray[np.int8]:
    s = scale.astype(np.float32)
    inverse = np.divide(1.0, s, out=np.zeros_like(s), where=s != 0)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.nan_to_num(x * inverse[:, None])
    return np.clip(np.rint(scaled), low, high).astype(np.int8)


def _error(x: Floats, codes: npt.NDArray[np.int8], scale: npt.NDArray[np.floating], weight: Floats | None) -> Floats:
    off = codes * scale.astype(np.float32)[:, None] - x
    np.square(off, out=off)
    if weight is not None:
        off *= weight
    return np.asarray(off.sum(1), np.float32)


def _fitted(x: Floats, codes: npt.NDArray[np.int8], weight: Floats | None) -> Floats:
    """The scale with which these codes come nearest to the weights."""
    q = codes.astype(np.float32)
    w = q if weight is None else q * weight
    size = (w * q).sum(1)
    return np.asarray(np.divide((w * x).sum(1), size, out=np.zeros_like(size), where=size > 0), np.float32)


def _pack(codes: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return codes
    parts = codes.reshape(*codes.shape[:-1], -1, 8 // bits)
    out: Bytes = parts[..., 0].copy()
    for i in range(1, 8 // bits):
        out |= parts[..., i] << np.uint8(bits * i)
    return out
