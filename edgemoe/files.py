"""What one system has and another has not: files, locks, folders, ports, signals. Imports nothing of ours.

Elsewhere nothing asks for a system's name but what runs on one alone (io_uring, cgroups, ONNX exports on Linux).
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    import socket

# Nothing is handed to a child, and on Windows no byte is changed on its way.
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_fd(path: Path, flags: int) -> int:
    """os.open for bytes. Made by it, a file is everybody's to read."""
    return os.open(path, flags | _FLAGS, 0o644)


# ---------------------------------------------------------------- at given places, from any thread

if sys.platform == "win32":
    _seeking = threading.Lock()  # a file has one place there, and reading moves it

    def read_at(fd: int, into: memoryview, offset: int) -> int:
        """Read at an offset, as many bytes as there are room and file for; 0 at its end."""
        with _seeking:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(into))
        into[: len(data)] = data
        return len(data)

    def _write_some(fd: int, data: memoryview, offset: int) -> int:
        with _seeking:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, data)

else:

    def read_at(fd: int, into: memoryview, offset: int) -> int:
        """Read at an offset, as many bytes as there are room and file for; 0 at its end."""
        return os.preadv(fd, [into], offset)

    def _write_some(fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it at an offset."""
    view = memoryview(data).cast("B")
    while view:
        n = _write_some(fd, view, offset)
        view, offset = view[n:], offset + n


# ---------------------------------------------------------------- what is on the disk


def sync_data(fd: int) -> None:
    """Wait until what was written is on the disk. macOS and Windows have no fdatasync."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Windows syncs no folders."""
    if sys.platform != "win32":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def drop_cached(fd: int, offset: int = 0, n_bytes: int = 0) -> None:
    """These bytes, 0 for all to the end, need not stay in the page cache. Not every system takes the word."""
    if sys.platform == "linux":
        os.posix_fadvise(fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)


def disk_bytes(fd: int) -> int:
    """What a file takes on the disk; its size where the system does not say."""
    status = os.fstat(fd)
    if sys.platform == "win32":
        return status.st_size
    else:
        return status.st_blocks * 512


# ---------------------------------------------------------------- locks between processes

if sys.platform == "win32":

    def _lock_beside(path: Path) -> int:
        """A file beside it, which goes with the lock: locked bytes there are nobody else's to read, and a file that is
        open cannot be renamed."""
        try:
            fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_TEMPORARY | _FLAGS)
        except PermissionError:  # it is just going
            raise BlockingIOError from None
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            os.close(fd)
            raise BlockingIOError from None
        return fd

    def lock_folder(folder: Path) -> int:
        """Hold a folder until the number is closed. Raises BlockingIOError where another process has it."""
        return _lock_beside(folder)

    def open_locked(path: Path, flags: int) -> tuple[int, int]:
        """A file, made if need be, and its lock, which ends when both are closed. Raises BlockingIOError, OSError.

        It is the file that has this name now, and not one that was renamed while the lock was waited for. Before the
        file is renamed its own number must be closed; the lock stays.
        """
        lock = _lock_beside(path)
        try:
            return open_fd(path, flags | os.O_CREAT), lock
        except OSError:
            os.close(lock)
            raise

else:

    def lock_folder(folder: Path) -> int:
        """Hold a folder until the number is closed. Raises BlockingIOError where another process has it."""
        fd = open_fd(folder, os.O_RDONLY)
        _lock(fd)
        return fd

    def open_locked(path: Path, flags: int) -> tuple[int, int]:
        """A file, made if need be, and its lock, which ends when both are closed. Raises BlockingIOError, OSError.

        It is the file that has this name now, and not one that was renamed while the lock was waited for. Before the
        file is renamed its own number must be closed; the lock stays.
        """
        while True:
            fd = open_fd(path, flags | os.O_CREAT)
            _lock(fd)
            if is_at(fd, path):
                return fd, os.dup(fd)
            os.close(fd)  # who had the lock has finished

    def _lock(fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise


def is_at(fd: int, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(fd), there)


# ---------------------------------------------------------------- the machine


def arrives(stream: BinaryIO, seconds: float) -> bool:
    """Whether something can be read, or the end of it, within so long. Windows does not say of pipes: True."""
    return sys.platform == "win32" or bool(select.select([stream], [], [], seconds)[0])


def load_average() -> tuple[float, float, float]:
    """Of the last 1, 5 and 15 minutes; 0 on Windows, which counts none."""
    if sys.platform == "win32":
        return 0.0, 0.0, 0.0
    else:
        return os.getloadavg()


def ticks_per_s() -> int:
    """Of the times in /proc."""
    if sys.platform == "win32":
        return 1000
    else:
        return os.sysconf("SC_CLK_TCK")


def own_port(listener: socket.socket) -> None:
    """No second program listens where this one does, and one that has just ended is no hindrance."""
    import socket

    # Where Windows has SO_REUSEADDR it lets a second program take the same port.
    name = "SO_EXCLUSIVEADDRUSE" if sys.platform == "win32" else "SO_REUSEADDR"
    listener.setsockopt(socket.SOL_SOCKET, getattr(socket, name), 1)


def apart() -> dict[str, Any]:
    """Arguments of subprocess.Popen for a child that Ctrl-C at the terminal is not for."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    else:
        return {"start_new_session": True}


@contextlib.contextmanager
def told_to_stop(call: Callable[[], object]) -> Iterator[None]:
    """While it lasts, Ctrl-C and the system's request to end call this instead. Of the main thread."""
    import signal

    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform == "win32":
        numbers.append(signal.SIGBREAK)  # the closing of its window
    before = {number: signal.signal(number, lambda *_: call()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
