"""The shell of a model: a GGUF with its metadata and dense weights only, which llama.cpp loads instead of the model.

Derived data, kept in the cache folder under the model's identity, made anew when in doubt. Beside each lies a small
JSON file that says which model it is of, and what contexts were measured (see sizes.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ... import _native
from ...errors import StorageError
from ...paths import cache_dir as cache_dir
from ...paths import read_cached, write_cached
from ...units import MIB, format_size
from .model import Model

Progress = Callable[[str], None]
"""Receives one line of text at the beginning of each step that takes time."""

_FOLDER = "shells"
_KEEP = 8  # shells; the least recently used go first
_META_BYTES = 64 * MIB  # more than any tokenizer and metadata take
_FRESH_S = 3600  # a shell used so lately may be another process's that is about to load it: it stays
_STALE_S = 24 * 3600  # a temporary file this old was left by a process that died


def shell_for(model: Model, *, progress: Progress | None = None) -> Path:
    """The model's shell, written if there is none or it is not whole. Raises StorageError (disk full, unreadable)."""
    path = _path(model)
    if _native.shell_check(model.handle, os.fspath(path)):
        _remember(model, path)
        return path
    _prune(spare=path)
    need, free = model.info.dense_bytes + _META_BYTES, _free_bytes(path.parent)
    if free < need:
        raise StorageError(
            f"`{path.parent}` has {format_size(free)} free, the dense part of {model.info.name} takes "
            f"{format_size(need)}",
            hint="free some space, or set `EDGEMOE_CACHE` to a folder on another disk",
        )
    if progress:
        progress(f"copying the dense weights ({format_size(model.info.dense_bytes)}, once a model)")
    _write(model, path, with_data=True)
    _remember(model, path)
    return path


@contextlib.contextmanager
def measuring_shell(model: Model) -> Iterator[Path]:
    """A shell that is good enough to measure contexts with: the model's own, or one without weights for this while."""
    path = _path(model)
    if _native.shell_check(model.handle, os.fspath(path)):
        yield path
        return
    temporary = path.with_name(f"{path.stem}.{os.getpid()}-{threading.get_ident()}.measure")
    try:
        _write(model, temporary, with_data=False)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def notes_name(model: Model) -> str:
    """Name in the cache folder of the JSON object that belongs to the model's shell."""
    return f"{_FOLDER}/{model.info.identity:016x}.json"


def _path(model: Model) -> Path:
    folder = cache_dir() / _FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the folder `{folder}`: {error.strerror}", hint="set `EDGEMOE_CACHE` to a folder you own"
        ) from None
    return folder / f"{model.info.identity:016x}.gguf"


def _write(model: Model, path: Path, *, with_data: bool) -> None:
    try:
        _native.shell_write(model.handle, os.fspath(path), with_data=with_data)
    except StorageError as error:
        raise StorageError(
            error.message, hint="free some space, or set `EDGEMOE_CACHE` to a folder on another disk"
        ) from None


def _remember(model: Model, shell: Path) -> None:
    """Note which model the shell is of, and that it was used now."""
    name, source = notes_name(model), os.path.abspath(model.path)
    notes = read_cached(name)
    if notes.get("source") != source:
        write_cached(name, {**notes, "source": source})
    with contextlib.suppress(OSError):  # only the order of pruning
        os.utime(shell)


def _prune(*, spare: Path) -> None:
    """Delete what a dead process left, shells of models that are gone, and the least recently used beyond _KEEP."""
    shells = []
    for file in spare.parent.iterdir():
        with contextlib.suppress(OSError):  # another process prunes as well
            used = file.stat().st_mtime
            if file.suffix == ".gguf" and file != spare:
                shells.append((used, file))
            elif (file.suffix == ".measure" or ".tmp" in file.suffix) and used < time.time() - _STALE_S:
                file.unlink()
    shells.sort(reverse=True)
    for n, (used, file) in enumerate(shells, start=1):
        if used < time.time() - _FRESH_S and (n >= _KEEP or not _source_exists(file)):
            for old in (file, file.with_suffix(".json")):
                with contextlib.suppress(OSError):
                    old.unlink()


def _source_exists(shell: Path) -> bool:
    try:
        source = json.loads(shell.with_suffix(".json").read_text("utf-8"))["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return os.path.exists(source)


def _free_bytes(folder: Path) -> int:
    if hasattr(os, "statvfs"):  # shutil.disk_usage is the same, behind 1 MB of imports
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize
    import shutil

    return shutil.disk_usage(folder).free
