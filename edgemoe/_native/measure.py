"""Functions of edgemoe.h that measure: devices, storage, kernels."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from .. import _abi as abi
from .library import check, library, values


def devices() -> list[dict[str, Any]]:
    """ggml's devices: the fields of `emoe_device_info`."""
    found = []
    for i in range(library().emoe_device_count()):
        info, error = abi.DeviceInfo(), abi.Error()
        check(library().emoe_device_get(i, ctypes.byref(info), ctypes.byref(error)), error)
        found.append(values(info))
    return found


def backend_load(path: str) -> None:
    error = abi.Error()
    check(library().emoe_backend_load(os.fsencode(path), ctypes.byref(error)), error)


def storage_measure(path: str, block_bytes: int, n_lane: int, max_bytes: int, max_ns: int) -> dict[str, Any]:
    speed, error = abi.StorageSpeed(), abi.Error()
    status = library().emoe_storage_measure(
        os.fsencode(path), block_bytes, n_lane, max_bytes, max_ns, ctypes.byref(speed), ctypes.byref(error)
    )
    check(status, error)
    return values(speed)


def compute_measure(type_name: str, n_threads: int, max_ns: int) -> int:
    rate, error = ctypes.c_uint64(), abi.Error()
    status = library().emoe_compute_measure(
        type_name.encode("utf-8"), n_threads, max_ns, ctypes.byref(rate), ctypes.byref(error)
    )
    check(status, error)
    return rate.value
