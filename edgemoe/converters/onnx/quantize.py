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
    weight = None if importance is None else importance.reshape(-1, block).astype(np.float32)
    scales = np.empty(len(x), np.float16 if half_scales else np.float32)
    codes = np.empty(x.shape, np.uint8)
    per_row = n_col // block
    step = max(1, _AT_ONCE // n_col) * per_row  # whole rows that stay in the processor's cache
    for begin in range(0, len(x), step):
        part = slice(begin, begin + step)
        w = _weights(x[part])
        if weight is not None:
            w *= np.tile(weight, (len(w) // per_row, 1))
        scales[part], codes[part] = _searched(x[part], w, bits, scales.dtype.type)
    packed = _pack(codes, bits).reshape(n_row, n_col * bits // 8)
    return packed, scales.reshape(n_row, n_col // block)


def _weights(x: Floats) -> Floats:
    """What an error counts: more in large weights, as in ggml's quantizers."""
    square = np.square(x)
    return np.asarray(np.sqrt(square + square.mean(1, keepdims=True)))


_AT_ONCE = 32 * 1024  # weights


def _searched(
    x: Floats, weight: Floats | None, bits: int, kind: type[np.floating]
) -> tuple[npt.NDArray[np.floating], Bytes]:
    """Scales of blocks [n], and codes [n, block]."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    largest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)[:, 0]
    best = np.full(len(x), np.inf, np.float32)
    scales = np.zeros(len(x), kind)
    ends = [np.abs(largest) / high] if bits == 8 else []
    for first in (*ends, *(largest / low * np.float32(part) for part in _PARTS[bits])):
        _keep_better(x, weight, _stored(first, kind), best, scales, low, high)
    for _ in range(0 if bits == 8 else _REFINED):
        fitted = _fitted(x, _codes(x, scales, low, high), weight)
        _keep_better(x, weight, _stored(fitted, kind), best, scales, low, high)
    return scales, (_codes(x, scales, low, high) - low).astype(np.uint8)


_REFINED = 2  # times that the best scale for the codes is taken, and the codes for that scale


def _keep_better(
    x: Floats, weight: Floats | None, scale: npt.NDArray[np.floating], best: Floats,
    scales: npt.NDArray[np.floating], low: int, high: int,
) -> None:  # fmt: skip
    off = _codes(x, scale, low, high)
    off *= scale.astype(np.float32)[:, None]
    off -= x
    error = np.einsum("ij,ij->i", off, off) if weight is None else np.einsum("ij,ij,ij->i", off, off, weight)
    better = error < best
    best[better], scales[better] = error[better], scale[better]


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


def _codes(x: Floats, scale: npt.NDArray[np.floating], low: int, high: int) -> Floats:
    s = scale.astype(np.float32)
    codes = x * np.divide(1.0, s, out=np.zeros_like(s), where=s != 0)[:, None]
    np.rint(codes, out=codes)
    return np.asarray(np.clip(codes, low, high, out=codes))


def _fitted(x: Floats, q: Floats, weight: Floats | None) -> Floats:
    """The scale with which these codes come nearest to the weights."""
    w = q if weight is None else q * weight
    size = np.einsum("ij,ij->i", w, q)
    return np.asarray(np.divide(np.einsum("ij,ij->i", w, x), size, out=np.zeros_like(size), where=size > 0), np.float32)


def _pack(codes: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return codes
    parts = codes.reshape(*codes.shape[:-1], -1, 8 // bits)
    out: Bytes = parts[..., 0].copy()
    for i in range(1, 8 // bits):
        out |= parts[..., i] << np.uint8(bits * i)
    return out
