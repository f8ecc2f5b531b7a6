"""Kernel memory limits for child processes, and a cold page cache. Linux; the limit needs root.

A limit is a memory cgroup of its own, v1 or v2: page cache counts, and what overshoots is reclaimed or killed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import drop_cached


class LimitUnavailable(Exception):
    """This machine or this user cannot set a kernel memory limit; the text says why."""


@dataclass(frozen=True)
class Hierarchy:
    """Where memory cgroups are made. version: 1 or 2."""

    version: int
    root: Path


def find_hierarchy(mounts: str) -> Hierarchy | None:
    """The memory controller in the text of /proc/self/mounts. v1 wins: on a hybrid machine it owns the controller."""
    unified = None
    for line in mounts.splitlines():
        _, folder, kind, options = line.split()[:4]
        if kind == "cgroup" and "memory" in options.split(","):
            return Hierarchy(1, Path(folder))
        if kind == "cgroup2" and unified is None:
            unified = Hierarchy(2, Path(folder))
    return unified


@dataclass(frozen=True)
class Limit:
    """One memory cgroup with a limit. Made by `memory_limit`."""

    version: int
    folder: Path
    limit_bytes: int

    def joiner(self) -> Callable[[], None]:
        """For subprocess's preexec_fn: moves the child in before it runs, so that its own pages are counted."""
        path = os.fsencode(self.folder / "cgroup.procs")

        def join() -> None:
            fd = os.open(path, os.O_WRONLY)
            os.write(fd, b"0")  # 0: the process that writes
            os.close(fd)

        return join

    def peak_bytes(self) -> int | None:
        """The most that was ever charged, None where the kernel does not say (v2 before Linux 5.19)."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        with contextlib.suppress(OSError):
            return int((self.folder / name).read_text())
        return None

    def n_kill(self) -> int:
        """Processes that the kernel killed for going over."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        fields = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(fields.get("oom_kill", 0))


def _own_hierarchy() -> Hierarchy | None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return find_hierarchy(Path("/proc/self/mounts").read_text("utf-8", "surrogateescape"))
    return None


@contextlib.contextmanager
def memory_limit(limit_bytes: int, name: str) -> Iterator[Limit]:
    """A memory cgroup of limit_bytes for the processes that join it. Raises LimitUnavailable."""
    hierarchy = _own_hierarchy()
    if hierarchy is None:
        raise LimitUnavailable("no memory cgroups are mounted")
    folder = hierarchy.root / name
    try:
        if hierarchy.version == 2:
            _enable_memory(hierarchy.root)
        folder.mkdir()
    except OSError as error:
        raise LimitUnavailable(f"cannot make `{folder}`: {error.strerror}") from None
    try:
        try:
            _write_limits(hierarchy.version, folder, limit_bytes)
        except OSError as error:
            raise LimitUnavailable(f"cannot set a limit in `{folder}`: {error.strerror}") from None
        yield Limit(hierarchy.version, folder, limit_bytes)
    finally:
        _remove(folder)


def _enable_memory(root: Path) -> None:
    if "memory" not in (root / "cgroup.subtree_control").read_text().split():
        (root / "cgroup.subtree_control").write_text("+memory")


def _write_limits(version: int, folder: Path, limit_bytes: int) -> None:
    number = str(limit_bytes)
    if version == 1:
        (folder / "memory.limit_in_bytes").write_text(number)
        swap = folder / "memory.memsw.limit_in_bytes"
        if swap.exists():
            swap.write_text(number)
    else:
        (folder / "memory.max").write_text(number)
        with contextlib.suppress(OSError):  # absent without swap accounting
            (folder / "memory.swap.max").write_text("0")


def _remove(folder: Path) -> None:
    for _ in range(50):  # a process just ended is charged for a moment longer
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)


def drop_page_cache(paths: Iterable[Path]) -> str:
    """Forget cached pages: of everything as root ("all" is returned), else of the given files ("files").

    "no" where the system has no means for it.
    """
    if sys.platform == "linux":
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)  # only clean pages can be dropped
                drop_cached(fd)
            finally:
                os.close(fd)
        try:
            Path("/proc/sys/vm/drop_caches").write_text("3")
        except OSError:
            return "files"
        return "all"
    else:
        return "no"
