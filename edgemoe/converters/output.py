"""A file that appears whole or not at all, and whose writing goes on where a dead process left it.

OUT.partial holds the data; its header stays zero until everything else is on the disk, so no reader of GGUF ever takes
it for a model. OUT.partial.journal says which parts are safely there: data is synced before the journal names it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType

from ..errors import StorageError, UsageError
from ..files import drop_cached, sync_data
from ..units import MIB, format_size
from .ggml import Bytes

_SYNC_BYTES = 64 * MIB
_SYNC_S = 1.0  # work lost at most by a kill, and dirty pages held at most, are what is written in this time


class Output:
    """Owns OUT.partial and its journal; a context manager. Raises StorageError, UsageError."""

    def __init__(
        self, path: Path, fingerprint: str, n_part: int, header_bytes: int, data_bytes: int, *, overwrite: bool = True
    ) -> None:
        """overwrite: whether a file that has this name meanwhile may go."""
        self.path, self._overwrite = path, overwrite
        self.partial = path.with_name(path.name + ".partial")
        self._journal_path = path.with_name(path.name + ".partial.journal")
        self._header_bytes, self._total = header_bytes, header_bytes + data_bytes
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._pending: list[tuple[int, str]] = []
        self._unsynced, self._synced_at = 0, time.monotonic()
        self._fd = self._open()
        self.finished: dict[int, str] = {}
        try:
            self.finished = self._resume(fingerprint, n_part)
            self.digests: dict[int, str] = dict(self.finished)
            self._check_space()
            self._journal = self._begin_journal(fingerprint)
        except OSError as error:
            os.close(self._fd)
            if not self.finished:
                self._remove()
            raise self._cannot_write(error) from None
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> int:
        """OUT.partial, locked: the file that has this name now, and not one that has become OUT meanwhile."""
        while True:
            try:
                fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise StorageError(f"cannot write `{self.partial}`: {error.strerror}") from None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                raise UsageError(
                    f"`{self.path}` is being written by another process", hint="wait for it, or choose another name"
                ) from None
            if _is_at(fd, self.partial):
                break
            os.close(fd)  # who had the lock has finished: its file is OUT
        if not self._overwrite and self.path.exists():
            if os.fstat(fd).st_size == 0:  # made just now
                self.partial.unlink(missing_ok=True)
            os.close(fd)
            raise UsageError(
                f"`{self.path}` exists: another process has just written it",
                hint="choose another name, or add `--overwrite`",
            )
        return fd

    def _resume(self, fingerprint: str, n_part: int) -> dict[int, str]:
        """Parts that are on the disk, with their digests; {} when the file is of other work."""
        finished: dict[int, str] = {}
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = self._journal_path.read_text("ascii").splitlines(keepends=True)
            if json.loads(lines[0])["fingerprint"] != fingerprint or os.fstat(self._fd).st_size != self._total:
                return {}
            for line in lines[1:]:
                index, digest = line.split()
                if not line.endswith("\n") or len(digest) != 64 or not 0 <= int(index) < n_part:
                    break  # the last line of a process that died
                finished[int(index)] = digest
        return finished

    def _check_space(self) -> None:
        have = os.fstat(self._fd).st_blocks * 512 if self.finished else 0
        free = shutil.disk_usage(self.path.parent).free + (0 if self.finished else os.fstat(self._fd).st_blocks * 512)
        if free < self._total - have:
            if not self.finished:
                self._remove()
            raise StorageError(
                f"`{self.path.parent}` has {format_size(free)} free, the new file takes "
                f"{format_size(self._total - have)} more",
                hint="free some space or choose another place",
            )

    def _begin_journal(self, fingerprint: str) -> int:
        if not self.finished:
            os.ftruncate(self._fd, 0)  # nothing of other work stays
        os.ftruncate(self._fd, self._total)
        os.pwrite(self._fd, bytes(4), 0)
        lines = [json.dumps({"fingerprint": fingerprint}) + "\n"]
        lines += [f"{index} {digest}\n" for index, digest in self.finished.items()]
        temporary = self._journal_path.with_name(self._journal_path.name + ".tmp")
        with temporary.open("w", encoding="ascii") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._journal_path)
        return os.open(self._journal_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def write(self, offset: int, data: Bytes) -> None:
        """Put rows at an offset of the data. Any thread."""
        view, at = data.reshape(-1).data, self._header_bytes + offset
        while view:
            try:
                n = os.pwrite(self._fd, view, at)
            except OSError as error:
                raise self._cannot_write(error) from None
            view, at = view[n:], at + n
        with self._lock:
            self._unsynced += data.nbytes

    def finish(self, index: int, digest: str) -> None:
        """Part `index` has been written. Any thread."""
        with self._lock:
            self._pending.append((index, digest))
            self.digests[index] = digest
            due = self._unsynced >= _SYNC_BYTES or time.monotonic() - self._synced_at >= _SYNC_S
        if due and self._sync_lock.acquire(blocking=False):
            try:
                self._sync()
            finally:
                self._sync_lock.release()

    def _sync(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
            self._unsynced, self._synced_at = 0, time.monotonic()
        try:
            sync_data(self._fd)
            os.write(self._journal, "".join(f"{index} {digest}\n" for index, digest in pending).encode("ascii"))
            sync_data(self._journal)
        except OSError as error:
            raise self._cannot_write(error) from None
        drop_cached(self._fd)

    def publish(self, header: bytes) -> None:
        """Everything is written: give the file its header, then its name."""
        assert len(header) == self._header_bytes
        self._sync()
        try:
            for at, piece in ((4, header[4:]), (0, header[:4])):  # what makes it a GGUF comes last
                view = memoryview(piece)
                while view:
                    n = os.pwrite(self._fd, view, at)
                    view, at = view[n:], at + n
                os.fsync(self._fd)
            if not self._overwrite and self.path.exists():
                raise UsageError(f"`{self.path}` exists: it was written meanwhile", hint="choose another name")
            os.replace(self.partial, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError as error:
            raise self._cannot_write(error) from None
        if _is_at(self._journal, self._journal_path):  # and not that of who writes the next one already
            self._journal_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """What was written is of no use."""
        self._remove()

    def _remove(self) -> None:
        for path in (self._journal_path, self.partial):
            path.unlink(missing_ok=True)

    def _cannot_write(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write `{self.path}`: {error.strerror}",
            hint="free some space, then give the same command again: it goes on where it stopped",
        )

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.partial.exists():  # what is done stays done
            with contextlib.suppress(StorageError):
                self._sync()
        os.close(self._journal)
        os.close(self._fd)


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(fd), there)
