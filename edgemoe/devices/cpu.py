"""Cores and instruction sets of this machine.

What the processor calls itself is read from /proc; how many cores there are is asked of native code.
"""

from __future__ import annotations

import platform
from pathlib import Path

from .. import _native

# The instruction sets that ggml's kernels are compiled for; a report names those that the CPU has.
_REPORTED = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def physical_cores() -> int:
    """Cores that this process may run on, threads of one core counted once, of two kinds the fast ones; at least 1."""
    return _native.memory()["n_core"]


def cpu_name() -> str:
    """What the CPU calls itself."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor() or platform.machine()


def isa_flags() -> tuple[str, ...]:
    """Instruction sets that matter for the kernels; empty where the system does not say."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return tuple(flag for flag in _REPORTED if flag in present)
    return ()


def _cpuinfo() -> list[str]:
    """Lines of /proc/cpuinfo; none where there is no such file."""
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
