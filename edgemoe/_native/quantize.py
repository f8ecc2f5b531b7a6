"""The function of edgemoe.h that quantizes."""

from __future__ import annotations

import ctypes
from typing import Any

from .. import _abi as abi
from .library import check, library


def quantize_block(kind: int, weights: Any, factor: Any, importance: Any, out: Any) -> None:
    """Round one block of each row; see `emoe_quantize_block`. All arrays are contiguous and hold what it says."""
    floats, error = ctypes.POINTER(ctypes.c_float), abi.Error()
    status = library().emoe_quantize_block(
        kind,
        weights.ctypes.data_as(floats),
        factor.ctypes.data_as(floats),
        importance.ctypes.data_as(floats),
        len(weights),
        out.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)),
        ctypes.byref(error),
    )
    check(status, error)
