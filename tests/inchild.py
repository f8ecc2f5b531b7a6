"""Open a model in a forked child: what became of it, said in one line, also when the process was ended."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import edgemoe

ANSWERED = "answered"


def outcome(path: Path, *, seconds: int = 60, **options: Any) -> str:
    """`answered`, the error's message, or how the child ended that opens the file and computes three tokens."""
    if sys.platform == "win32":
        pytest.skip("forks a child for each file")
    else:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(seconds)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            said = _said(path, options)
            os.write(write, said.encode()[:4000])
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read().decode()
        status = os.waitpid(pid, 0)[1]
        return said if status == 0 else f"ended by signal {os.WTERMSIG(status)}"


def is_finding(said: str) -> bool:
    """The process was ended, the exception was none of ours, or its text is no line."""
    return said.startswith(("ended by", "unexpected")) or "\n" in said or not said


def _said(path: Path, options: dict[str, Any]) -> str:
    try:
        with edgemoe.load(path, **{"memory": "900M", "ctx": 64, "threads": 2, **options}) as engine:
            engine.eval([65, 66, 67])
    except edgemoe.EdgeMoEError as error:
        return error.message
    except BaseException as error:
        return f"unexpected {error!r}"
    return ANSWERED
