"""What a chat leaves for the next one: its conversation, and the lines that were typed. Nobody else may read them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import EdgeMoEError, StorageError, UsageError
from ..paths import state_dir, whole_file
from ..printable import whole_characters
from .conversation import Message
from .pictures import is_content

_ROLES = ("system", "user", "assistant")
_MAX_LINES = 1000  # typed ones that are remembered
_MAX_BYTES = 64 << 20  # of a file that is taken for a conversation


def written(messages: Sequence[Message]) -> bytes:
    """A conversation as a file has it."""
    return (whole_characters(json.dumps(list(messages), ensure_ascii=False, indent=2)) + "\n").encode("utf-8")


def read(path: Path) -> list[Message]:
    """The messages of a file that `/save` wrote, or somebody by hand. Raises UsageError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"`{path}` is too large for a conversation")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}", hint="give a file that `/save` wrote") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not found or not all(map(_is_message, found)):
        raise UsageError(f"`{path}` is no conversation", hint="give a file that `/save` wrote")
    return found


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in _ROLES
        and is_content(value.get("content"))
        and isinstance(value.get("reasoning_content", ""), str)
    )


def of_model(model: Path) -> Path:
    """Where the last conversation with a model is kept. Raises StorageError."""
    place = hashlib.sha256(os.fsencode(model.resolve())).hexdigest()[:8]
    return state_dir() / "chats" / f"{model.stem[:80]}-{place}.json"


def remember(model: Path, messages: Sequence[Message]) -> None:
    """Keep the last conversation with a model. Raises StorageError."""
    path = of_model(model)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with whole_file(path, private=True) as stream:
            stream.write(written(messages))
    except OSError as error:
        raise StorageError(f"cannot keep the conversation in `{path.parent}`: {error.strerror}") from None


def recall(model: Path) -> list[Message]:
    """The last conversation with a model. Raises UsageError where there is none."""
    path = of_model(model)
    if not path.exists():
        raise UsageError(f"there is no conversation with `{model.name}` to resume", hint="`edgemoe chat` begins one")
    return read(path)


def last(model: Path) -> list[Message]:
    """`recall`, but nothing where there is none or it cannot be read."""
    try:
        return recall(model)
    except EdgeMoEError:
        return []


def load_lines() -> None:
    """Give the line editor what was typed in earlier chats. Windows has no line editor of Python's."""
    if sys.platform != "win32":
        with contextlib.suppress(ImportError, OSError, StorageError):
            import readline

            readline.set_history_length(_MAX_LINES)
            readline.read_history_file(_lines_file())


def save_lines() -> None:
    """Keep what was typed. That this fails costs nothing but that."""
    if sys.platform != "win32":
        with contextlib.suppress(ImportError, OSError, StorageError):
            import readline

            path = _lines_file()
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            try:
                os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
                readline.write_history_file(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


def _lines_file() -> Path:
    return state_dir() / "lines"
