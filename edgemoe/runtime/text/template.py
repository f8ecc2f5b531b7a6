"""Run chat templates in a process of their own (`template_child.py`), with bounds of time and memory.

The process is started at the first rendering that needs it (`chatml.py` knows which do not), serves all models of this
one, and ends with it. In this process no template can loop, grow or crash anything. One rendering at a time.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import FormatError, StorageError, UsageError
from ...units import KIB, MIB
from .chatml import chatml_of

_START_BYTES = 17 * MIB  # a Python with jinja2: 10.5 MiB of its own; and the room of a rendering
_COMPILED_BYTES = 300  # for a byte of template: 80 to 290 for those of 60 models
_ROOM_BYTES = 6 * MIB  # for what a rendering makes, and of address space that is not used
_TEXT_BYTES = 24  # for a byte of a request: as JSON, as objects, as a prompt, each up to 4 bytes a character
_SHORT_TEXT_BYTES = 16 * KIB
_PATIENCE_S = 20  # of the clock; the processor's time is bounded to template_child.CPU_S
_LONGEST = 4  # a prompt may be so many times longer than template and messages
_LEAST_LONGEST = MIB


class Refused(Exception):
    """The template called raise_exception, with this text."""


class Stopped(FormatError):
    """The template is no program that can be run: it took too much, or does not compile."""


def first_rendering_bytes(template: str | None) -> int:
    """Memory that the first rendering will take, at most; 0 after it, and where no template is run."""
    if template is None or _process.runs or chatml_of(template):
        return 0
    return _START_BYTES + _COMPILED_BYTES * len(template)


def rendering_bytes(n_text: int) -> int:
    """Memory that rendering n_text bytes of messages takes meanwhile; 0 where the margin bears it."""
    return _TEXT_BYTES * n_text if n_text > _SHORT_TEXT_BYTES else 0


def resident_bytes() -> int:
    """Memory that the process of the templates has for itself now."""
    return _process.resident_bytes()


def run(template: str, names: Mapping[str, Any]) -> str:
    """What a template writes when it is given these names. Raises Refused, FormatError, UsageError, StorageError."""
    try:
        text = json.dumps(names)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the messages are no JSON: {error}") from None
    if plain := chatml_of(template):
        given = json.loads(text)
        try:
            return plain.render(given["messages"], add_generation_prompt=bool(given["add_generation_prompt"]))
        except TypeError as error:
            raise FormatError(f"the model's chat template failed: {error}", hint=_PLAIN) from None
    size = len(template) + len(text)
    request = {
        "template": template,
        "names": names,
        "room": _ROOM_BYTES + _COMPILED_BYTES * len(template) + _TEXT_BYTES * size,
        "longest": max(_LEAST_LONGEST, _LONGEST * size),
    }
    answer = _process.ask(json.dumps(request).encode())
    if "text" in answer:
        return str(answer["text"])
    if "refused" in answer:
        raise Refused(answer["refused"])
    if "broken" in answer:
        raise Stopped(f"the model's chat template is broken: {answer['broken']}", hint=_PLAIN)
    if "memory" in answer:
        raise Stopped(f"the model's chat template was stopped: {answer['memory']}", hint=_PLAIN)
    raise FormatError(f"the model's chat template failed: {answer.get('failed', 'it gives no reason')}", hint=_PLAIN)


_PLAIN = "give the prompt as plain text with `edgemoe run --raw`"


class _Process:
    """The child, started when it is needed and after it had to be stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @property
    def runs(self) -> bool:
        child = self._child
        # After a fork of this process the child is the other one's.
        return child is not None and self._owner == os.getpid() and child.poll() is None

    def resident_bytes(self) -> int:
        child = self._child
        if child is None:
            return 0
        try:
            text = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            return 0
        found = [line for line in text.splitlines() if line.startswith("RssAnon:")]
        return int(found[0].split()[1]) * 1024 if found else 0

    def ask(self, request: bytes) -> dict[str, Any]:
        with self._lock:
            if not self.runs:
                self._start()
            assert self._child is not None
            try:
                return self._exchange(self._child, request)
            except BaseException:
                self.stop()
                raise

    def _start(self) -> None:
        self.stop()
        self._owner = os.getpid()
        command = [sys.executable, "-I", "-S", "-X", "utf8", str(Path(__file__).with_name("template_child.py"))]
        try:
            # A session of its own: Ctrl-C at the terminal is not for it.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise StorageError(
                f"the process for the model's chat template cannot be started: {why}",
                hint="allow this user one more process, or use `edgemoe run --raw`",
            ) from None
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._send(self._child, json.dumps({"path": [entry for entry in sys.path if entry]}).encode(), _deadline())

    def _exchange(self, child: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
        deadline = _deadline()
        self._send(child, request, deadline)
        size = int.from_bytes(self._receive(child, 8, deadline), "little")
        found = json.loads(self._receive(child, size, deadline))
        assert isinstance(found, dict)
        return found

    def _send(self, child: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
        assert child.stdin is not None
        rest = memoryview(len(data).to_bytes(8, "little") + data)
        while rest:
            _wait(deadline, write=child.stdin.fileno())
            try:
                rest = rest[os.write(child.stdin.fileno(), rest) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._ended(child) from None

    def _receive(self, child: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
        assert child.stdout is not None
        data = bytearray()
        while len(data) < size:
            _wait(deadline, read=child.stdout.fileno())
            try:
                part = os.read(child.stdout.fileno(), min(size - len(data), MIB))
            except BlockingIOError:
                continue
            if not part:
                raise self._ended(child)
            data += part
        return bytes(data)

    def _ended(self, child: subprocess.Popen[bytes]) -> Stopped:
        try:
            code = child.wait(5)
        except subprocess.TimeoutExpired:
            code = 0
        why = "it took too much time" if code == -24 else f"its process ended with {code}"  # SIGXCPU
        return Stopped(f"the model's chat template was stopped: {why}", hint=_PLAIN)

    def stop(self) -> None:
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        with contextlib.suppress(OSError):
            child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        child.wait()


def _deadline() -> float:
    return time.monotonic() + _PATIENCE_S


def _wait(deadline: float, *, read: int | None = None, write: int | None = None) -> None:
    """Until a pipe can be read or written. Raises FormatError."""
    poll = select.poll()
    if read is not None:
        poll.register(read, select.POLLIN)
    if write is not None:
        poll.register(write, select.POLLOUT)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Stopped(f"the model's chat template was stopped: no answer in {_PATIENCE_S} s", hint=_PLAIN)
        if poll.poll(left * 1000):
            return


_process = _Process()
atexit.register(_process.stop)
