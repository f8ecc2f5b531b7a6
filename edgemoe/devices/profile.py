"""Measured facts about a machine, as data: what a plan's predictions and a benchmark's report stand on."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import _native
from .compute import cached_compute, forget_compute, measure_compute
from .cpu import cpu_name, isa_flags, physical_cores
from .memory import available_memory, memory_limit, total_memory
from .storage import StorageSpeed, cached_storage, describe, forget_storage, measure_storage

_TOO_FAST = 2.0  # reads of a run may be larger than those that were measured, and so a little faster


@dataclass(frozen=True)
class DeviceProfile:
    """What a plan needs to know of a device; memory in bytes.

    compute_bytes_per_s: weight bytes that the decode kernels read a second, of the model's main type, on n_threads.
    """

    n_core: int
    n_threads: int
    total_bytes: int
    limit_bytes: int
    available_bytes: int
    storage: StorageSpeed | None = None
    compute_type: str = ""
    compute_bytes_per_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> DeviceProfile:
        """The inverse of `to_dict`."""
        storage = value.get("storage")
        return DeviceProfile(**{**value, "storage": StorageSpeed(**storage) if storage else None})


def profile(
    path: str | Path, block_bytes: int, compute_type: str, *, n_threads: int | None = None, measure: bool = True
) -> DeviceProfile:
    """This machine, for a model at `path` whose expert matrices have `block_bytes` of `compute_type`.

    measure: spend up to two seconds on speeds that are not known yet; otherwise those stay None.
    """
    threads = n_threads or physical_cores()
    return DeviceProfile(
        n_core=physical_cores(),
        n_threads=threads,
        total_bytes=total_memory(),
        limit_bytes=memory_limit(),
        available_bytes=available_memory(),
        storage=measure_storage(path, block_bytes) if measure else cached_storage(path, block_bytes),
        compute_type=compute_type,
        compute_bytes_per_s=(measure_compute if measure else cached_compute)(compute_type, threads),
    )


def contradict(
    path: str | Path,
    block_bytes: int,
    compute_type: str,
    n_threads: int,
    *,
    read_bytes_per_s: float | None,
    compute_bytes_per_s: float | None,
) -> None:
    """Forget a speed that a run was faster than: it was measured beside other work, and will be measured again.

    read_bytes_per_s, compute_bytes_per_s: what the run had at least; None where it does not say. A run that was slower
    contradicts nothing: it may have had a busy machine itself.
    """
    storage, compute = cached_storage(path, block_bytes), cached_compute(compute_type, n_threads)
    if storage and read_bytes_per_s and read_bytes_per_s > _TOO_FAST * storage.bytes_per_s:
        forget_storage(path, block_bytes)
    if compute and compute_bytes_per_s and compute_bytes_per_s > compute:
        forget_compute(compute_type, n_threads)


def machine(path: str | Path | None = None) -> dict[str, Any]:
    """This machine and its software for a report, as a JSON object; with the storage of `path` if given."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "isa": list(isa_flags()),
        "n_core": physical_cores(),
        "total_bytes": total_memory(),
        "limit_bytes": memory_limit(),
        "os": f"{platform.system()} {platform.release()}",
        "python": ".".join(map(str, sys.version_info[:3])),
        "native": _native.build_info(),
        "llama_cpp_python": _native.LLAMA_VERSION,
    }
    if path is not None:
        found["storage"] = asdict(describe(path))
    return found
