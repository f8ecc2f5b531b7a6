"""`edgemoe` at a pseudo terminal, and the hand that types there."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest


class Terminal:
    """A child at a pseudo terminal."""

    def __init__(self, arguments: list[str], environment: dict[str, str], kind: str) -> None:
        assert hasattr(pty, "openpty"), "Windows has no pseudo terminals of this kind"
        self._master, slave = pty.openpty()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "edgemoe", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": kind},
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str, timeout: float = 60) -> str:
        """What was shown up to the pattern, which must appear."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"`{pattern}` did not appear in {self.seen!r}"
            try:
                self.seen += os.read(self._master, 65536).decode("utf-8", "replace")
            except OSError:  # the child closed its end
                pytest.fail(f"`{pattern}` did not appear in {self.seen!r}")
        shown, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return shown

    def interrupt(self) -> None:
        """Ctrl-C, a moment after the last thing was shown, as a hand would: readline must have begun to wait."""
        time.sleep(0.3)
        self.child.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self._master)


@contextlib.contextmanager
def terminal(arguments: list[str], environment: dict[str, str], *, kind: str = "dumb") -> Iterator[Terminal]:
    opened = Terminal(arguments, environment, kind)
    try:
        yield opened
    finally:
        opened.close()
