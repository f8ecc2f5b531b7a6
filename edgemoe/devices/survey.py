"""Everything that a machine can compute with and read from, described and measured: `edgemoe devices`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..units import KIB
from .compute import measure_compute
from .cpu import cpu_name, isa_flags, physical_cores
from .gpu import Gpu, backends, gpus
from .memory import available_memory, memory_limit, total_memory
from .storage import StorageSpeed, describe, find_lanes, measure_storage

LANES = (1, 2, 4, 8, 16)
"""Reads under way at once for which a drive is measured."""

_LARGE, _SMALL = 1024 * KIB, 4 * KIB
_TYPES = ("q4_K", "q8_0", "f16")
_PROBE_BYTES = 64 << 20


@dataclass(frozen=True)
class Drive:
    """Where a file lies, and how fast it is read past the page cache.

    large: random reads of 1 MiB with 1, 2, 4, 8, 16 under way. small: one read of 4 KiB after the other, for latency.
    lanes: how many an engine would keep under way.
    """

    path: str
    filesystem: str
    device: str
    mount_point: str
    large: tuple[StorageSpeed, ...]
    small: StorageSpeed
    lanes: int


@dataclass(frozen=True)
class Survey:
    """A machine. Sizes in bytes, speeds in bytes a second.

    limit_bytes: what this process may use at most (RAM or a cgroup's limit). compute: weight bytes a second that the
    decode kernels read on every core, by ggml type. gpus: devices that this build of ggml finds. backends: what it was
    built with.
    """

    cpu: str
    isa: tuple[str, ...]
    n_core: int
    total_bytes: int
    limit_bytes: int
    available_bytes: int
    compute: dict[str, float]
    drive: Drive
    backends: tuple[str, ...]
    gpus: tuple[Gpu, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def survey(path: str | Path, *, fresh: bool = False) -> Survey:
    """Describe this machine, and measure what is not known yet: about five seconds, the first time for a file.

    path: a file of at least some megabytes on the drive of interest. fresh: measure the drive again.
    Raises StorageError when it cannot be read.
    """
    return Survey(
        cpu=cpu_name(),
        isa=isa_flags(),
        n_core=physical_cores(),
        total_bytes=total_memory(),
        limit_bytes=memory_limit(),
        available_bytes=available_memory(),
        compute={name: measure_compute(name, physical_cores()) for name in _TYPES},
        drive=_drive(path, fresh=fresh),
        backends=backends(),
        gpus=tuple(gpus()),
    )


def _drive(path: str | Path, *, fresh: bool) -> Drive:
    place = describe(path)
    return Drive(
        path=str(path),
        filesystem=place.filesystem,
        device=place.device,
        mount_point=place.mount_point,
        large=tuple(measure_storage(path, _LARGE, n_lane=n, fresh=fresh) for n in LANES),
        small=measure_storage(path, _SMALL, n_lane=1, fresh=fresh),
        lanes=find_lanes(path, _LARGE, max_bytes=_PROBE_BYTES),
    )
