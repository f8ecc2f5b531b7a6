"""Where derived data lives, which can always be made again: losing it costs time and nothing else; and what cannot."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any

from .errors import StorageError


def cache_dir() -> Path:
    """`$EDGEMOE_CACHE`, else `edgemoe` in the user's cache folder (`user_cache`); made if it is missing.

    Raises StorageError when it cannot be made.
    """
    chosen = os.environ.get("EDGEMOE_CACHE")
    folder = Path(chosen).expanduser() if chosen else user_cache() / "edgemoe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the cache folder `{folder}`: {error.strerror}", hint="set `EDGEMOE_CACHE` to a folder you own"
        ) from None
    return folder


def user_cache() -> Path:
    """Where programs keep what they can make again. llama.cpp goes by the same rule."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        return home / "Library" / "Caches"
    else:
        return xdg_cache()


def xdg_cache() -> Path:
    """Where programs that go by Linux' rule on every system keep it: Hugging Face's are such."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache"))


def state_dir() -> Path:
    """`$EDGEMOE_STATE`, else `$XDG_STATE_HOME/edgemoe`, else `~/.local/state/edgemoe`; made if it is missing.

    For what a person made, which is lost where it is lost. Raises StorageError when it cannot be made.
    """
    base = os.environ.get("XDG_STATE_HOME")
    otherwise = (Path(base) if base else Path(os.path.expanduser("~"), ".local", "state")) / "edgemoe"
    chosen = os.environ.get("EDGEMOE_STATE")
    folder = Path(chosen).expanduser() if chosen else otherwise
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the folder `{folder}`: {error.strerror}", hint="set `EDGEMOE_STATE` to a folder you own"
        ) from None
    return folder


def read_cached(name: str) -> dict[str, Any]:
    """The JSON object stored under `name` in the cache folder, {} when there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError, StorageError):
        value = json.loads((cache_dir() / name).read_text("utf-8"))
        if isinstance(value, dict):
            return value
    return {}


def write_cached(name: str, value: dict[str, Any]) -> None:
    """Store a JSON object under `name` atomically. A failure is ignored: it costs the measurement again."""
    write_whole(name, json.dumps(value, indent=1).encode("utf-8"))


def write_whole(name: str, content: bytes) -> None:
    """Store a file under `name` in the cache folder, whole or not at all. A failure is ignored."""
    with contextlib.suppress(OSError, StorageError):
        path = cache_dir() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            stream.write(content)


@contextlib.contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[BufferedWriter]:
    """A stream into a file that is there whole or not at all: a temporary name beside it, synced, renamed.

    A pipe or a device is written to as it is, and never replaced. private: nobody but its owner may read it.
    Raises StorageError.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                yield stream
            return
        mode = 0o600 if private else 0o666
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write `{path}`: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
