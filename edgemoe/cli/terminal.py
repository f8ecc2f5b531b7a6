"""Reading what a person types, and Ctrl-C that stops an answer and not the program."""

from __future__ import annotations

import contextlib
import os
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


@dataclass(frozen=True)
class Question:
    """What a person wrote. quoted: between three quotes, so that it is a message whatever it begins with."""

    text: str
    quoted: bool = False


def prepare(interactive: bool) -> None:
    """Line editing for people, with lines that are pasted together kept together."""
    if not interactive:
        return
    if sys.platform != "win32":  # whose consoles edit lines themselves
        with contextlib.suppress(ImportError):
            import readline  # input() uses it once it is loaded

            # Python turns it off. libedit, which some Pythons have instead, knows nothing of it; nor do dumb terminals.
            if "libedit" not in (readline.__doc__ or "") and os.environ.get("TERM") != "dumb":
                readline.parse_and_bind("set enable-bracketed-paste on")


def read_question(interactive: bool) -> Question | None:
    '''One message: a line, what was pasted at once, or everything between two `"""`. None at the end of input.'''
    line = _read_line(PROMPT if interactive else "")
    if line is None:
        return None
    if not line.lstrip().startswith(FENCE):
        return Question(line.strip())
    text = line.lstrip()[len(FENCE) :]
    while not text.rstrip().endswith(FENCE):
        line = _read_line(CONTINUED if interactive else "")
        if line is None:
            return Question(text, quoted=True)
        text += "\n" + line
    return Question(text.rstrip()[: -len(FENCE)].strip("\n"), quoted=True)


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
