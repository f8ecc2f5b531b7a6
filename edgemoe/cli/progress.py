"""A bar on stderr for work of minutes: redrawn in place on a terminal, a line a tenth of the way elsewhere."""

from __future__ import annotations

import shutil
import sys
import time

from ..printable import plain
from .status import dim


class Bar:
    """Call it with what is being done, how much is done, and of how much; `end` leaves the line."""

    _WIDTH = 24

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._what = ""
        self._tenth = -1
        self._drawn = False

    def __call__(self, what: str, done: int, total: int) -> None:
        what = plain(what)
        subject = what.split(":")[0]
        if subject != self._what:
            self.end()
            self._what, self._began, self._tenth = subject, time.monotonic(), -1
        tenth = 10 * done // max(1, total)
        if sys.stderr.isatty():
            filled = self._WIDTH * done // max(1, total)
            bar = "#" * filled + "." * (self._WIDTH - filled)
            line = f"{bar} {done}/{total} {what}{self._left(done, total)}"
            print(f"\r\033[K{dim(line[: shutil.get_terminal_size().columns - 1], sys.stderr)}", end="", file=sys.stderr)
            sys.stderr.flush()
            self._drawn = True
        elif tenth != self._tenth:
            print(f"{done}/{total} {what}{self._left(done, total)}", file=sys.stderr, flush=True)
        self._tenth = tenth

    def end(self) -> None:
        if self._drawn:
            print(file=sys.stderr, flush=True)
            self._drawn = False

    def _left(self, done: int, total: int) -> str:
        if not 0 < done < total:
            return ""
        seconds = (time.monotonic() - self._began) / done * (total - done)
        return f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"
