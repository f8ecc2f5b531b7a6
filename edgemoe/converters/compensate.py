"""Quantizing with errors compensated: what rounding one column does to a product is made good by the columns after it.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) with ggml's blocks and types. With inputs X, weighted by what each counts,
and H = X^T X, the error of the product is smallest when a column's rounding error is spread over the columns that are
still free, by the inverse of H. libedgemoe chooses a block's codes (native/src/llama/compensate.cpp); here are H, the
factor of its inverse, and the way from block to block.

Where X comes from: `factors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import _native
from .ggml import Bytes, Floats, block_bytes, block_weights, row_bytes, type_id

F64 = npt.NDArray[np.float64]

MOST_COLUMNS = 4096
"""Of one H. Longer rows are compensated in parts of so many columns."""
_DAMPING = 0.02  # share of the mean square input that counts as noise in every column


@dataclass(frozen=True)
class Factor:
    """For each part of the columns its first one and the upper Cholesky factor of the inverse of H, [n, n]."""

    parts: tuple[tuple[int, Floats], ...]


def factor_bytes(n_col: int) -> int:
    """What making a factor holds at most."""
    n = min(n_col, MOST_COLUMNS)
    return 24 * n * n + 8 * n_col * n  # three in float64 of one part; moments and factors of all in float32


def quantize(values: Floats, name: str, factor: Factor, importance: Floats | None) -> Bytes:
    """Rows of float32 in a type, as bytes [n_row, row_bytes]. importance: one weight a column, for the scales."""
    n_row, n_col = values.shape
    block, n_byte = block_weights(name), block_bytes(name)
    out = np.empty((n_row, row_bytes(name, n_col)), np.uint8)
    weights = np.ones(n_col, np.float32) if importance is None else np.asarray(importance, np.float32)
    raw = np.empty((n_row, n_byte), np.uint8)
    for first, upper in factor.parts:
        left = values[:, first : first + len(upper)].astype(np.float32)
        for begin in range(0, len(upper), block):
            end, at = begin + block, first + begin
            errors = np.ascontiguousarray(left[:, begin:end])
            diagonal = np.ascontiguousarray(upper[begin:end, begin:end])
            scales = np.ascontiguousarray(weights[at : at + block])
            _native.quantize_block(type_id(name), errors, diagonal, scales, raw)
            out[:, at // block * n_byte : (at // block + 1) * n_byte] = raw
            left[:, end:] -= errors @ upper[begin:end, end:]
    return out


def second_moments(x: Floats, count: F64) -> list[Floats]:
    """Sum of count * x x^T over tokens, for each part of the columns. x: [n, n_col]."""
    root = np.sqrt(count).astype(np.float32)[:, None]
    parts = (x[:, first : first + MOST_COLUMNS] * root for first in range(0, x.shape[1], MOST_COLUMNS))
    return [part.T @ part for part in parts]


def factor_of(moments: Sequence[Floats]) -> Factor | None:
    """moments: of each part of the columns. None where they say nothing."""
    if not all(np.isfinite(part).all() and part.any() for part in moments):
        return None
    return Factor(tuple((i * MOST_COLUMNS, _upper(part.astype(np.float64))) for i, part in enumerate(moments)))


def _upper(gram: F64) -> Floats:
    """U, upper, with U^T U the inverse of the damped H: R R^T = H with R upper, and U = R^-1."""
    gram[np.diag_indices_from(gram)] += _DAMPING * max(float(np.trace(gram)) / len(gram), 1e-30)
    root: F64 = np.asarray(np.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1], np.float64)
    return np.ascontiguousarray(_inverse(root), np.float32)


def _inverse(upper: F64) -> F64:
    """Of an upper triangle, by halves: matrix products do the work."""
    n = len(upper)
    if n <= 64:
        return np.asarray(np.linalg.inv(upper), np.float64)
    half = n // 2
    out = np.zeros_like(upper)
    out[:half, :half] = first = _inverse(upper[:half, :half])
    out[half:, half:] = second = _inverse(upper[half:, half:])
    out[:half, half:] = -first @ (upper[:half, half:] @ second)
    return out
