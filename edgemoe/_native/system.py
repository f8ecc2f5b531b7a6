"""What the machine and this process are, and what only the operating system can be asked for."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any

from .. import _abi as abi
from .library import check, library, values


def memory(root: str | None = None) -> dict[str, int]:
    """The fields of `emoe_memory_info`. root: where /proc and /sys are looked for, None for this machine's."""
    info, error = abi.MemoryInfo(), abi.Error()
    check(
        library().emoe_memory_get(None if root is None else os.fsencode(root), ctypes.byref(info), ctypes.byref(error)),
        error,
    )
    return values(info)


def rss_bytes() -> int:
    """Resident memory of this process now. Cheap: for what is asked again and again."""
    return int(library().emoe_memory_rss())


def trim_heap() -> None:
    """Give freed memory back to the system; glibc keeps it otherwise."""
    library().emoe_memory_trim()


_IO_URING_SETUP = 425  # number of the system call, the same on every processor but alpha


def io_uring_allowed() -> bool:
    """Whether the kernel gives this process an io_uring that the library can use. Containers often forbid it."""
    # An Android app's seccomp filter ends the process at a call that it does not list. Termux calls itself "linux".
    if sys.platform == "linux" and not hasattr(sys, "getandroidapilevel"):
        params = (ctypes.c_uint32 * 30)()  # struct io_uring_params
        ring = ctypes.CDLL(None).syscall(_IO_URING_SETUP, 1, params)
        if ring >= 0:
            os.close(ring)
            return bool(params[5] & 1)  # features: IORING_FEAT_SINGLE_MMAP, which native/src/io/uring.cpp wants
    return False


# ---------------------------------------------------------------- mapped files

_WILL_NEED, _DONT_NEED, _POPULATE_READ = 3, 4, 22  # of madvise on Linux


@functools.cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def map_expect(address: int, n_bytes: int) -> None:
    """These pages of a mapped file will be wanted soon: the kernel begins to read them. address: of a page."""
    _madvise()(address, n_bytes, _WILL_NEED)


def map_fill(address: int, n_bytes: int) -> bool:
    """Read these pages of a mapped file now. False when they cannot be read, or the kernel is older than 5.14."""
    return bool(_madvise()(address, n_bytes, _POPULATE_READ) == 0)


def map_drop(address: int, n_bytes: int) -> None:
    """Take these pages of a mapped file out of the process; their next use reads them again."""
    _madvise()(address, n_bytes, _DONT_NEED)
