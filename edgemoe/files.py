"""What one system has and another has not, asked of the system and not of its name. Imports nothing of ours."""

from __future__ import annotations

import os
import sys


def sync_data(fd: int) -> None:
    """Wait until what was written is on the disk. macOS and Windows have no fdatasync."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def drop_cached(fd: int, offset: int = 0, n_bytes: int = 0) -> None:
    """These bytes, 0 for all to the end, need not stay in the page cache. Not every system takes the word."""
    if sys.platform == "linux":
        os.posix_fadvise(fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)
