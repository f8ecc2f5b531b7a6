"""Reading what a person types, and Ctrl-C that stops an answer and not the program."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

PROMPT = ">>> "
CONTINUED = "... "
FENCE = '"""'


def is_interactive() -> bool:
    """A person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def prepare(interactive: bool) -> None:
    """Line editing for people; text that is not UTF-8 is no reason to stop."""
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() uses it once it is loaded)
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def read_question(interactive: bool) -> str | None:
    '''One message: a line, or everything between two `"""`. None at the end of input.'''
    line = _read_line(PROMPT if interactive else "")
    if line is None or not line.lstrip().startswith(FENCE):
        return line
    text = line.lstrip()[len(FENCE) :]
    while not text.rstrip().endswith(FENCE):
        line = _read_line(CONTINUED if interactive else "")
        if line is None:
            return text
        text += "\n" + line
    return text.rstrip()[: -len(FENCE)].strip("\n")


def _read_line(prompt: str) -> str | None:
    if not prompt:
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    try:
        return input(prompt)
    except EOFError:
        print()
        return None


@dataclass
class Interrupt:
    """seen: Ctrl-C was pressed."""

    seen: bool = False


@contextlib.contextmanager
def cancel_on_interrupt(cancel: Callable[[], None]) -> Iterator[Interrupt]:
    """Inside, Ctrl-C calls `cancel` and is remembered instead of raising KeyboardInterrupt."""
    interrupt = Interrupt()

    def handle(number: int, frame: FrameType | None) -> None:
        interrupt.seen = True
        cancel()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
