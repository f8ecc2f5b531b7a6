"""How much memory there is, how much this process may use, how much it uses.

On Linux everything is read from /proc and the cgroup files; elsewhere psutil is asked. `root` is where /proc and /sys
are looked for: tests give a folder of their own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..units import KIB

_ROOT = Path("/")


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
    status = Path("/proc/self/status")
    if status.exists():
        fields = _kib_fields(status)
        file = fields.get("RssFile", 0) + fields.get("RssShmem", 0)
        return ProcessMemory(fields["VmRSS"], fields["VmHWM"], fields.get("RssAnon", 0), file)
    info = _psutil().Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return ProcessMemory(info.rss, info.peak_wset, 0, 0)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return ProcessMemory(info.rss, max(peak, info.rss), 0, 0)


def total_memory(root: Path = _ROOT) -> int:
    """Bytes of RAM."""
    if (root / "proc/meminfo").exists():
        return _kib_fields(root / "proc/meminfo")["MemTotal"]
    return int(_psutil().virtual_memory().total)


def memory_limit(root: Path = _ROOT) -> int:
    """Bytes that this process may use at most: RAM, or the smallest limit of the cgroups that it is in."""
    return min([total_memory(root), *(limit for limit, _ in _cgroups(root))])


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that can be had now without swapping: free or reclaimable, in RAM and below every cgroup limit."""
    if (root / "proc/meminfo").exists():
        available = _kib_fields(root / "proc/meminfo")["MemAvailable"]
    else:
        available = int(_psutil().virtual_memory().available)
    return max(0, min([available, *(limit - used for limit, used in _cgroups(root))]))


def _psutil() -> Any:
    return importlib.import_module("psutil")  # here: 4 MB that Linux need not spend


def _kib_fields(path: Path) -> dict[str, int]:
    """`Name:  123 kB` lines as bytes."""
    fields = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            fields[name] = int(value[:-3]) * KIB
    return fields


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used that cannot be reclaimed) of every limited memory cgroup around this process."""
    for folder in _cgroup_folders(root):
        # Version 2 first, version 1 second: limit, usage, and the reclaimable page cache in memory.stat.
        for limit_name, usage_name, inactive in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(folder / limit_name)
            if limit is None or limit >= 1 << 60:  # version 1 writes "none" as a number near 2^63
                continue
            usage = _number(folder / usage_name) or 0
            yield limit, max(0, usage - _stat(folder / "memory.stat", inactive))


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Folders of this process's memory cgroup and of its parents, as far as they are visible."""
    try:
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    paths = {}  # "memory" for version 1, "" for version 2 -> path inside the hierarchy
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mount_root, mount_point = before.split()[3:5]
        if kind == "cgroup2":
            controller = ""
        elif kind == "cgroup" and "memory" in options.split(" ")[-1].split(","):
            controller = "memory"
        else:
            continue
        if controller not in paths:
            continue
        # A container may see a path from outside its own mount: what is visible then is the mount itself.
        inside = os.path.relpath(paths[controller], mount_root)
        top = root / mount_point.lstrip("/")
        folder = top if inside.startswith("..") else top / inside
        while True:
            if folder.is_dir():
                yield folder
            if folder == top or folder == folder.parent:
                break
            folder = folder.parent


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent in this version of cgroups, or "max"
        return None


def _stat(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
