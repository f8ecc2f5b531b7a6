"""The standard streams as they are given to us: closed ones, and encodings that lack characters."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def prepare_streams() -> None:
    """Make all three usable. A closed one becomes the null device; a character that cannot be written becomes `?`.

    The null device takes the number of the closed stream: else the next file that is opened would get it, and with it
    whatever a library writes to its stderr.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if not _is_open(number):
            _open_null(number)
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and name != "stderr":  # Python's stderr escapes such characters
            stream.reconfigure(errors="replace")
            if sys.platform == "win32" and not stream.isatty():  # where nobody chose cp1252 for pipes and files
                stream.reconfigure(encoding="utf-8")


def discard(stream: TextIO) -> None:
    """Nobody reads the stream any more: what is still buffered goes nowhere, quietly."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _open_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)
