"""A reference model's log-probabilities in a file: computed once, compared with many times.

One line of JSON with what it is of, padded to 64 KiB with blanks, then float32 [window][scored][n_vocab]. It is as
large as that sounds: 25 MB a window of 512 tokens and 50,000 words.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, StorageError, UsageError
from ..paths import whole_file
from ..units import format_size
from .windows import F32, Windows

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine

MAGIC = "edgemoe reference 1"
_HEADER_BYTES = 1 << 16

Progress = Callable[[str, int, int], None]
"""Receives what is being done, how many windows are done, and of how many."""


class Reference:
    """An open reference: `rows` reads it. Close it, or use it in a `with` statement.

    model: its name. n_vocab: floats a row.
    """

    def __init__(self, stream: IO[bytes], facts: dict[str, Any]) -> None:
        self._stream = stream
        self._facts = facts
        self.model = str(facts["model"])
        self.n_vocab = int(facts["n_vocab"])

    def check(self, windows: Windows, n_vocab: int) -> None:
        """Raise UsageError when it is not of these windows, or of another vocabulary."""
        if n_vocab != self.n_vocab:
            raise UsageError(
                f"the reference `{self.model}` has a vocabulary of {self.n_vocab:,}, this model one of {n_vocab:,}",
                hint="compare models with the same tokenizer",
            )
        if self._facts["text"] != _digest(windows):
            raise UsageError(
                f"the reference has {self._facts['n_window']} windows of {self._facts['n_ctx']} tokens of another text",
                hint="give the same text, `--windows` and `--ctx` as when it was made",
            )

    def rows(self, windows: Windows, i: int) -> Iterator[F32]:
        """The rows of window i. Raises FormatError when the file ends early."""
        self._stream.seek(_HEADER_BYTES + i * windows.n_scored * self.n_vocab * 4)
        for _ in range(windows.n_scored):
            raw = self._stream.read(self.n_vocab * 4)
            if len(raw) != self.n_vocab * 4:
                raise FormatError(f"the reference ends in window {i + 1}", hint="make it again")
            yield np.frombuffer(raw, dtype="<f4")

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


RowsOf = Callable[[int], Iterator[F32]]
"""The log-probabilities of a window, by its number."""


def make(engine: Engine, windows: Windows, rows_of: RowsOf, folder: Path, progress: Progress) -> Reference:
    """Compute a reference into a file without a name in `folder`: it is gone when closed, or when the process dies."""
    _check_room(folder, windows, engine.n_vocab)
    # Closed with the Reference that it becomes.
    stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    try:
        facts = _write(stream, engine, windows, rows_of, progress)
    except BaseException:
        stream.close()
        raise
    return Reference(stream, facts)


def save(engine: Engine, windows: Windows, rows_of: RowsOf, path: Path, progress: Progress) -> None:
    """Compute a reference into a file, atomically. Raises StorageError."""
    _check_room(path.absolute().parent, windows, engine.n_vocab)
    with whole_file(path) as stream:
        _write(stream, engine, windows, rows_of, progress)


def is_reference(path: Path) -> bool:
    """Whether the file begins like one. Raises StorageError."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC) + 16).startswith(b'{"magic": "' + MAGIC.encode())
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}") from None


def open_reference(path: Path) -> Reference:
    """Raises StorageError, FormatError."""
    try:
        stream = path.open("rb")
        header = stream.read(_HEADER_BYTES)
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}") from None
    try:
        facts = json.loads(header)
        n_row, *others = (facts[key] for key in ("n_row", "n_vocab", "n_ctx", "n_window"))
        good = all(type(value) is int and 0 < value < 1 << 48 for value in (n_row, *others))
        if good and os.fstat(stream.fileno()).st_size == _HEADER_BYTES + n_row * facts["n_vocab"] * 4:
            return Reference(stream, facts)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    stream.close()
    raise FormatError(f"`{path}` is no whole reference", hint="make it again with `--save`")


def _write(stream: IO[bytes], engine: Engine, windows: Windows, rows_of: RowsOf, progress: Progress) -> dict[str, Any]:
    facts = {
        "magic": MAGIC,
        "model": engine.model.info.name,
        "n_vocab": engine.n_vocab,
        "n_ctx": windows.n_ctx,
        "n_window": len(windows),
        "n_row": len(windows) * windows.n_scored,
        "text": _digest(windows),
    }
    stream.write(json.dumps(facts).encode().ljust(_HEADER_BYTES))
    for i in range(len(windows)):
        progress(f"reference {engine.model.info.name}", i, len(windows))
        for row in rows_of(i):
            stream.write(row.astype("<f4").tobytes())
    progress(f"reference {engine.model.info.name}", len(windows), len(windows))
    return facts


def _digest(windows: Windows) -> str:
    """Changes with the tokens, the cutting and the BOS."""
    value = np.array([windows.n_ctx, windows.n_given, windows.bos, *windows.tokens], dtype="<i4")
    return hashlib.sha256(value.tobytes()).hexdigest()


def _check_room(folder: Path, windows: Windows, n_vocab: int) -> None:
    need = _HEADER_BYTES + len(windows) * windows.n_scored * n_vocab * 4
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"cannot write in `{folder}`: {error.strerror}") from None
    if need > free:
        raise StorageError(
            f"`{folder}` has {format_size(free)} free, the reference's probabilities take {format_size(need)}",
            hint="use fewer `--windows`, or set `EDGEMOE_CACHE` to a folder on another disk",
        )
