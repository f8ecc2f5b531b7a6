"""How much memory there is, how much this process may use, how much it uses: asked of native code.

`root` is where /proc and /sys are looked for: tests give a folder of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .. import _native


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of this process, bytes.

    rss: resident now. peak: the largest rss so far. anon: the part that is private (heap, weights, cache).
    file: the part that is mapped files (libraries); anon and file are 0 where the system does not say.
    """

    rss: int
    peak: int
    anon: int
    file: int


def process_memory() -> ProcessMemory:
    """What this process uses now and used at most."""
    now = _native.memory()
    return ProcessMemory(now["rss_bytes"], now["peak_bytes"], now["anon_bytes"], now["file_bytes"])


def total_memory(root: Path | None = None) -> int:
    """Bytes of RAM."""
    return _memory(root)["total_bytes"]


def memory_limit(root: Path | None = None) -> int:
    """Bytes that this process may use at most: RAM, the limits of the cgroups that it is in, its own rlimits."""
    return _memory(root)["limit_bytes"]


def available_memory(root: Path | None = None) -> int:
    """Bytes that can be had now without swapping: free or reclaimable, in RAM and below every limit."""
    return _memory(root)["available_bytes"]


def _memory(root: Path | None) -> dict[str, int]:
    return _native.memory(None if root is None else os.fspath(root))
