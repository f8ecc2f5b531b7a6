"""What `chat` and `run` share: opening an engine and streaming an answer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .. import printable
from ..errors import Cancelled
from .options import EngineOptions
from .status import DIM, PLAIN, note, takes_colour
from .terminal import cancel_on_interrupt

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine
    from ..runtime.text.thinking import Piece


def find(model: str, *, verbose: bool = False) -> Path:
    """The file of a model by what a person calls it, with the progress of a download where one is needed."""
    import edgemoe

    return edgemoe.resolve(model, progress=note if verbose or sys.stderr.isatty() else None)


def load(model: str | Path, options: EngineOptions, *, verbose: bool) -> Engine:
    """The engine, with a line of progress while a model is prepared for the first time, and its plan if wanted."""
    import edgemoe

    talk = note if verbose or sys.stderr.isatty() else None
    path = find(model, verbose=verbose) if isinstance(model, str) else model
    setup = options.setup()
    engine = edgemoe.load(path, setup, progress=talk)
    if setup.device == "auto":
        note(engine.plan.device_line)
    if engine.plan.context_line and not verbose:  # the plan says it as well
        note(engine.plan.context_line)
    if options.trace:
        try:
            engine.trace(options.trace)
        except BaseException:
            engine.close()
            raise
    if verbose:
        for line in engine.plan.lines():
            note(line)
    return engine


def write(text: str) -> None:
    """Print a piece of an answer at once: to a pipe as it is, to a terminal so that it cannot command it."""
    sys.stdout.write(printable.shown(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _command(code: str) -> None:
    """Our own word to the terminal, which `write` would make harmless."""
    sys.stdout.write(code)
    sys.stdout.flush()


def told(pieces: Iterator[Piece], parts: dict[str, str] | None = None, *, dimmed: bool | None = None) -> Iterator[str]:
    """Pieces of an answer as text to show: thinking is dimmed on a terminal, else between `<think>` marks.

    parts: receives what was thought and what was answered, by the kinds of pieces.
    """
    from ..runtime.text.thinking import said, shown

    def noted() -> Iterator[Piece]:
        for piece in pieces:
            if parts is not None:
                parts[piece.kind] = parts.get(piece.kind, "") + piece.text
            yield piece

    if not (takes_colour(sys.stdout) if dimmed is None else dimmed):
        yield from shown(noted())
        return
    thinking = False
    try:
        for piece in noted():
            if thinking != (piece.kind == "thinking"):
                thinking = not thinking
                _command(DIM if thinking else PLAIN)
                if not thinking:
                    yield "\n\n"
            yield said(piece)
    finally:
        if thinking:
            _command(PLAIN)


def stream(pieces: Iterator[str], cancel: Callable[[], None], show: Callable[[str], None] = write) -> tuple[str, bool]:
    """Show pieces as they come until Ctrl-C. Returns the text and whether it was interrupted."""
    written: list[str] = []
    # Cancelled: by the handler, in the middle of a computation; between two it is the flag that stops the loop.
    with cancel_on_interrupt(cancel) as interrupt, contextlib.suppress(Cancelled):
        for piece in pieces:
            if interrupt.seen:
                break
            written.append(piece)
            show(piece)
    return "".join(written), interrupt.seen
