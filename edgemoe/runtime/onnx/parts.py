"""The prepared parts of an export, in the cache folder: made once an export, processor and version of ONNX Runtime."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

from ...errors import FormatError, StorageError
from ...paths import cache_dir
from ...units import MIB, format_size
from .model import PAGE, OnnxModel
from .prepare import PREPARED

_KEEP = 4  # exports; the least recently used go first


def parts_of(model: OnnxModel, *, progress: Callable[[str], None] | None = None) -> Path:
    """The folder of the parts, made if it is not there. Raises StorageError, FormatError."""
    home = cache_dir() / "onnx"
    folder = home / f"{model.info.identity:016x}-{_machine():08x}"
    if (folder / PREPARED).is_file():
        with contextlib.suppress(OSError):
            os.utime(folder)
        return folder
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        home.mkdir(exist_ok=True)
        _prune(home)
        need, free = 5 * model.info.expert_bytes // 2 + 64 * MIB, shutil.disk_usage(home).free
        if free < need:
            raise StorageError(
                f"`{home}` has {format_size(free)} free, packing {model.info.name} takes up to {format_size(need)}",
                hint="free some space, or set `EDGEMOE_CACHE` to a folder on another disk",
            )
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        if progress:
            progress(f"packing the experts for this processor ({format_size(model.info.expert_bytes)}, once)")
        _run(model, temporary)
        _sync(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / PREPARED).is_file():  # else another process was faster
                raise
    except OSError as error:
        raise StorageError(
            f"cannot write into `{home}`: {error.strerror}",
            hint="free some space, or set `EDGEMOE_CACHE` to a folder on another disk",
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _run(model: OnnxModel, folder: Path) -> None:
    command = [sys.executable, "-m", "edgemoe.runtime.onnx.prepare", os.fspath(model.path.resolve()), os.fspath(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line]
        why = lines[-1][:200] if lines else f"it ended with status {done.returncode}"
        if "No space left" in why:
            raise StorageError(f"cannot pack the experts: {why}", hint="free some space")
        raise FormatError(
            f"ONNX Runtime cannot take `{model.path}` apart: {why}", hint="make the export anew; it may be damaged"
        )


def _machine() -> int:
    """Of what packed weights depend on: ONNX Runtime, the processor's instructions and the size of its pages."""
    import onnxruntime

    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return zlib.crc32(f"2 {PAGE} {onnxruntime.__version__} {flags}".encode())


def _sync(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _prune(home: Path) -> None:
    """Delete what dead processes left, and the least recently used beyond _KEEP."""
    kept = []
    for path in home.iterdir():
        with contextlib.suppress(OSError):
            if path.suffix == ".tmp":
                number = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
                if number.isdigit() and not os.path.exists(f"/proc/{number}"):
                    shutil.rmtree(path, ignore_errors=True)
            elif path.is_dir():
                kept.append((path.stat().st_mtime, path))
    for _, path in sorted(kept, reverse=True)[_KEEP - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
