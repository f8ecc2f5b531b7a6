"""Run chat templates in a process of their own (`template_child.py`), with bounds of time and memory.

The process is started at the first rendering that needs it (`chatml.py` knows which do not), serves all models of this
one, and ends with it. In this process no template can loop, grow or crash anything. One rendering at a time.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import FormatError, StorageError, UsageError
from ...files import apart
from ...units import KIB, MIB
from .chatml import chatml_of

_START_BYTES = 17 * MIB  # a Python with jinja2: 10.5 MiB of its own; and the room of a rendering
_COMPILED_BYTES = 300  # for a byte of template: 80 to 290 for those of 60 models
_ROOM_BYTES = 6 * MIB  # for what a rendering makes, and of address space that is not used
_TEXT_BYTES = 24  # for a byte of a request: as JSON, as objects, as a prompt, each up to 4 bytes a character
_SHORT_TEXT_BYTES = 16 * KIB
_PATIENCE_S = 20.0  # of the clock; the processor's time is bounded to template_child.CPU_S where systems do that
_LIMITED = sys.platform == "linux"  # the system bounds the child's memory
_LOOK_S = 0.02  # between two looks at what it has taken elsewhere
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
    room = _ROOM_BYTES + _COMPILED_BYTES * len(template) + _TEXT_BYTES * size
    request = {
        "template": template,
        "names": names,
        "room": room,
        "longest": max(_LEAST_LONGEST, _LONGEST * size),
    }
    answer = _process.ask(json.dumps(request).encode(), room)
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
        return 0 if child is None else _resident_bytes(child.pid)

    def ask(self, request: bytes, room: int) -> dict[str, Any]:
        with self._lock:
            messages = [request] if self.runs else [self._start(), request]
            assert self._child is not None
            try:
                with _Watch(self._child, room) as watch:
                    return _exchange(self._child, messages, watch)
            except BaseException:
                self.stop()
                raise

    def _start(self) -> bytes:
        """Start it. Returns the first thing that it is told: where to import from."""
        self.stop()
        self._owner = os.getpid()
        # A virtual environment's own on Windows is a starter, whose child would be the one to watch.
        python = sys.executable if sys.platform != "win32" else getattr(sys, "_base_executable", sys.executable)
        command = [python, "-I", "-S", "-X", "utf8", str(Path(__file__).with_name("template_child.py"))]
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **apart()
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise StorageError(
                f"the process for the model's chat template cannot be started: {why}",
                hint="allow this user one more process, or use `edgemoe run --raw`",
            ) from None
        return json.dumps({"path": [entry for entry in sys.path if entry]}).encode()

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


class _Watch:
    """While it lasts, the child is ended when it takes too long, or too much where the system sets it no limits."""

    def __init__(self, child: subprocess.Popen[bytes], room: int) -> None:
        self.why = ""
        self._child, self._done = child, threading.Event()
        self._most = 0 if _LIMITED else max(_resident_bytes(child.pid), 2 * _START_BYTES) + room
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not self._done.wait(_PATIENCE_S if _LIMITED else _LOOK_S):
            if time.monotonic() >= deadline:
                self.why = f"no answer in {_PATIENCE_S:g} s"
            elif not _LIMITED and _resident_bytes(self._child.pid) > self._most:
                self.why = "it ran out of memory"
            if self.why:
                self._child.kill()
                return

    def __enter__(self) -> _Watch:
        try:
            self._thread.start()
        except RuntimeError as error:
            raise StorageError(
                f"the model's chat template cannot be watched: {error}",
                hint="allow this user one more thread, or use `edgemoe run --raw`",
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _exchange(child: subprocess.Popen[bytes], messages: list[bytes], watch: _Watch) -> dict[str, Any]:
    for message in messages:
        _send(child, message, watch)
    size = int.from_bytes(_receive(child, 8, watch), "little")
    found = json.loads(_receive(child, size, watch))
    assert isinstance(found, dict)
    return found


def _send(child: subprocess.Popen[bytes], data: bytes, watch: _Watch) -> None:
    assert child.stdin is not None
    rest = memoryview(len(data).to_bytes(8, "little") + data)
    while rest:
        try:
            rest = rest[os.write(child.stdin.fileno(), rest) :]
        except OSError:
            raise _ended(child, watch) from None


def _receive(child: subprocess.Popen[bytes], size: int, watch: _Watch) -> bytes:
    assert child.stdout is not None
    data = bytearray()
    while len(data) < size:
        part = os.read(child.stdout.fileno(), min(size - len(data), MIB))
        if not part:
            raise _ended(child, watch)
        data += part
    return bytes(data)


def _ended(child: subprocess.Popen[bytes], watch: _Watch) -> Stopped:
    try:
        code = child.wait(5)
    except subprocess.TimeoutExpired:
        code = 0
    why = watch.why or ("it took too much time" if code == -24 else f"its process ended with {code}")  # SIGXCPU
    return Stopped(f"the model's chat template was stopped: {why}", hint=_PLAIN)


def _resident_bytes(pid: int) -> int:
    """What a process has for itself, 0 when it is gone."""
    if sys.platform == "linux":
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return 0
        found = [line for line in text.splitlines() if line.startswith("RssAnon:")]
        return int(found[0].split()[1]) * 1024 if found else 0
    else:
        import psutil

        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0


_process = _Process()
atexit.register(_process.stop)
