"""Every error that a user can meet. Imports nothing of ours.

A message says what happened, with the value; a hint says what to do. Both are lower case without a full stop. Only a
command-line or server edge catches them, and prints `edgemoe: MESSAGE` and `hint: HINT`.
"""

from __future__ import annotations


class EdgeMoEError(Exception):
    """Something failed that the person at the keyboard should know about.

    message: one line, what happened; `str(error)` is the same.
    hint: one line, what to do about it; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgeMoEError):
    """The caller asked for something that makes no sense: an absurd flag, an empty prompt, a path without a file."""

    exit_code = 2


class BudgetError(UsageError):
    """The memory budget is too small for the model.

    smallest: bytes of the smallest budget that works, 0 when that is not known.
    """

    def __init__(self, message: str, hint: str = "", *, smallest: int = 0) -> None:
        super().__init__(message, hint)
        self.smallest = smallest


class FormatError(EdgeMoEError):
    """A file is not what it claims to be: truncated, corrupted, not a GGUF."""


class UnsupportedError(EdgeMoEError):
    """The file is fine, but its experts cannot be streamed: not a MoE, an unknown tensor type."""


class StorageError(EdgeMoEError):
    """The operating system refused: a read error, a full disk, a folder that cannot be written."""


class ContextFullError(EdgeMoEError):
    """No room is left in the KV cache."""


class Cancelled(EdgeMoEError):
    """`Engine.cancel()` was called while tokens were being computed."""

    exit_code = 130


class NativeError(EdgeMoEError):
    """The native library is missing, does not fit this package, or has a bug."""
