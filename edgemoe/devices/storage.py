"""Speed of the storage that a model lies on, measured through the engine's own reader, and what it is."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import _native
from ..paths import read_cached, write_cached
from ..units import MIB

N_LANE = 4  # reads under way at once where it has not been measured

_MOST = 1e15  # of anything that is measured here
_MAX_BYTES = 512 * MIB
_MAX_NS = 1_000_000_000
_KEEP = 64  # measurements

_LANES = (2, 4, 8, 16)
_ROUNDS = 3  # of which the best counts: other programs only ever make a drive look slower
_ROUND_NS = 40_000_000
_ENOUGH = 0.9  # more lanes than reach this share of the best would only make a read that is needed wait for others


@dataclass(frozen=True)
class StorageSpeed:
    """Random reads of `block_bytes` with `n_lane` under way.

    bytes_per_s: throughput. latency_s: median of one read. direct_io: they bypassed the page cache (O_DIRECT).
    """

    bytes_per_s: float
    latency_s: float
    block_bytes: int
    n_lane: int
    direct_io: bool

    def is_sound(self) -> bool:
        """Whether these are values that a measurement gives: what is remembered may have been damaged."""
        numbers = (self.bytes_per_s, self.latency_s, self.block_bytes, self.n_lane)
        return all(isinstance(value, (int, float)) and 0 < value < _MOST for value in numbers)


@dataclass(frozen=True)
class StorageInfo:
    """Where a file lies: file system type, device and mount point, as the system names them; "" where it does not."""

    filesystem: str
    device: str
    mount_point: str


def measure_storage(path: str | Path, block_bytes: int, *, n_lane: int = N_LANE, fresh: bool = False) -> StorageSpeed:
    """Measure reads of a file: takes about a second, the first time for a file and block size unless `fresh`.

    Raises StorageError when the file cannot be read.
    """
    key = _key(path, block_bytes, n_lane)
    known = None if fresh else cached_storage(path, block_bytes, n_lane=n_lane)
    if known is not None:
        return known
    found = _native.storage_measure(os.fspath(path), block_bytes, n_lane, _MAX_BYTES, _MAX_NS)
    speed = StorageSpeed(
        bytes_per_s=float(found["bytes_per_s"]),
        latency_s=found["latency_ns"] / 1e9,
        block_bytes=block_bytes,
        n_lane=n_lane,
        direct_io=bool(found["direct_io"]),
    )
    measurements = read_cached("storage.json")
    measurements.pop(key, None)
    write_cached("storage.json", {**dict(list(measurements.items())[1 - _KEEP :]), key: asdict(speed)})
    return speed


def cached_storage(path: str | Path, block_bytes: int, *, n_lane: int = N_LANE) -> StorageSpeed | None:
    """What `measure_storage` found before, None when it has not been asked. Reads a small file, measures nothing."""
    known = read_cached("storage.json").get(_key(path, block_bytes, n_lane))
    try:
        found = StorageSpeed(**known) if known else None
        return found if found and found.is_sound() else None
    except TypeError:  # written by another version, or damaged
        return None


def forget_storage(path: str | Path, block_bytes: int) -> None:
    """Let the next `measure_storage` measure."""
    measurements = read_cached("storage.json")
    if measurements.pop(_key(path, block_bytes, N_LANE), None) is not None:
        write_cached("storage.json", measurements)


def find_lanes(path: str | Path, block_bytes: int, *, max_bytes: int) -> int:
    """Reads to keep under way at once: the fewest that come near the drive's best for such reads of this file.

    Measured the first time for a file and block size, in half a second and at most max_bytes of memory; N_LANE when
    that is too little to tell. Raises StorageError when the file cannot be read.
    """
    key = _key(path, block_bytes, 0)
    known = read_cached("lanes.json")
    if known.get(key) in _LANES:
        return int(known[key])
    room = min(_MAX_BYTES // 8, max_bytes, os.path.getsize(path))
    if room < 2 * _LANES[-1] * block_bytes:
        return N_LANE
    best = dict.fromkeys(_LANES, 0.0)
    for _ in range(_ROUNDS):
        for n_lane in _LANES:
            found = _native.storage_measure(os.fspath(path), block_bytes, n_lane, room, _ROUND_NS)
            best[n_lane] = max(best[n_lane], float(found["bytes_per_s"]))
    lanes = next(n for n in _LANES if best[n] >= _ENOUGH * max(best.values()))
    known.pop(key, None)
    write_cached("lanes.json", {**dict(list(known.items())[1 - _KEEP :]), key: lanes})
    return lanes


def describe(path: str | Path) -> StorageInfo:
    """File system and device of a path."""
    if sys.platform == "linux":
        status = os.stat(path)
        wanted = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
            before, _, after = line.partition(" - ")
            fields = before.split()
            if fields[2] == wanted:
                kind, device = after.split()[:2]
                return StorageInfo(filesystem=kind, device=device, mount_point=fields[4])
    return StorageInfo("", "", "")


def _key(path: str | Path, block_bytes: int, n_lane: int) -> str:
    status = os.stat(path)
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{block_bytes}:{n_lane}"
