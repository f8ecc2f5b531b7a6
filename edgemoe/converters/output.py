"""A file that appears whole or not at all, and whose writing goes on where a dead process left it.

OUT.partial holds the data; its header stays zero until everything else is on the disk, so no reader of GGUF ever takes
it for a model. OUT.partial.journal says which parts are safely there: data is synced before the journal names it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType

from .. import files
from ..errors import StorageError, UsageError
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
        self._journal = -1
        self._fd, self._held = self._open()
        self.finished: dict[int, str] = {}
        try:
            self.finished = self._resume(fingerprint, n_part)
            self.digests: dict[int, str] = dict(self.finished)
            self._check_space()
            self._journal = self._begin_journal(fingerprint)
        except OSError as error:
            if not self.finished:
                self._remove()
            self._close()
            raise self._cannot_write(error) from None
        except BaseException:
            self._close()
            raise

    def _open(self) -> tuple[int, int]:
        """OUT.partial and its lock."""
        try:
            fd, held = files.open_locked(self.partial, os.O_RDWR)
        except BlockingIOError:
            raise UsageError(
                f"`{self.path}` is being written by another process", hint="wait for it, or choose another name"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot write `{self.partial}`: {error.strerror}") from None
        if not self._overwrite and self.path.exists():
            made = os.fstat(fd).st_size == 0  # just now
            os.close(fd)
            if made:
                self.partial.unlink(missing_ok=True)
            os.close(held)
            raise UsageError(
                f"`{self.path}` exists: another process has just written it",
                hint="choose another name, or add `--overwrite`",
            )
        return fd, held

    def _close(self, *names: str) -> None:
        """What is open cannot be renamed or removed everywhere. The lock goes last."""
        for name in names or ("_journal", "_fd", "_held"):
            fd = getattr(self, name)
            if fd >= 0:
                setattr(self, name, -1)
                os.close(fd)

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
        taken = files.disk_bytes(self._fd)
        have, goes = (taken, 0) if self.finished else (0, taken)
        free = shutil.disk_usage(self.path.parent).free + goes
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
        files.write_at(self._fd, bytes(4), 0)
        lines = [json.dumps({"fingerprint": fingerprint}) + "\n"]
        lines += [f"{index} {digest}\n" for index, digest in self.finished.items()]
        temporary = self._journal_path.with_name(self._journal_path.name + ".tmp")
        with temporary.open("w", encoding="ascii") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._journal_path)
        return files.open_fd(self._journal_path, os.O_WRONLY | os.O_APPEND)

    def write(self, offset: int, data: Bytes) -> None:
        """Put rows at an offset of the data. Any thread."""
        try:
            files.write_at(self._fd, data.reshape(-1).data, self._header_bytes + offset)
        except OSError as error:
            raise self._cannot_write(error) from None
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
            files.sync_data(self._fd)
            os.write(self._journal, "".join(f"{index} {digest}\n" for index, digest in pending).encode("ascii"))
            files.sync_data(self._journal)
        except OSError as error:
            raise self._cannot_write(error) from None
        files.drop_cached(self._fd)

    def publish(self, header: bytes) -> None:
        """Everything is written: give the file its header, then its name."""
        assert len(header) == self._header_bytes
        self._sync()
        try:
            for at, piece in ((4, header[4:]), (0, header[:4])):  # what makes it a GGUF comes last
                files.write_at(self._fd, piece, at)
                os.fsync(self._fd)
            if not self._overwrite and self.path.exists():
                raise UsageError(f"`{self.path}` exists: it was written meanwhile", hint="choose another name")
            self._close("_fd")
            os.replace(self.partial, self.path)
            files.sync_folder(self.path.parent)
        except OSError as error:
            raise self._cannot_write(error) from None
        last = files.is_at(self._journal, self._journal_path)  # and not that of who writes the next one already
        self._close("_journal")
        if last:
            self._journal_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """What was written is of no use."""
        self._remove()

    def _remove(self) -> None:
        self._close("_journal", "_fd")
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
        # What is done stays done. Closed already, it is on the disk whole: only its name was refused.
        if error is not None and self._fd >= 0 and self.partial.exists():
            with contextlib.suppress(StorageError):
                self._sync()
        self._close()
