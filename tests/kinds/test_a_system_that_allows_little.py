"""Sandboxes and images: io_uring that may be made and not used, a read-only cache, many first uses at once."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tinymoe

RUN = [str(Path(sys.executable).with_name("edgemoe")), "run", "-p", "hi", "-n", "5", "--memory", "300MiB"]
IO_URING_SETUP, IO_URING_ENTER = 425, 426  # the same on every architecture
EPERM, ENOSYS = 1, 38

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tinymoe.write(tmp_path / "m.gguf", "qwen3moe", expert_type="Q8_0", n_layer=2)


def _without(call: int, error: int) -> Callable[[], None]:
    """For the child before it becomes the command: a seccomp filter that answers one system call with an error."""
    load, jump_equal, answer = 0x20, 0x15, 0x06
    program = b"".join(
        struct.pack("HBBI", *step)
        for step in (
            (load, 0, 0, 0), (jump_equal, 0, 1, call), (answer, 0, 0, 0x00050000 | error), (answer, 0, 0, 0x7FFF0000),
        )
    )  # fmt: skip
    steps = ctypes.create_string_buffer(program)
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(steps))
    libc = ctypes.CDLL(None, use_errno=True)

    def install() -> None:
        keep = steps
        libc.prctl(38, 1, 0, 0, 0)  # no new privileges
        if libc.prctl(22, 2, ctypes.c_char_p(described), 0, 0) != 0:
            os._exit(97)
        del keep

    return install


def _run(model: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*RUN, str(model)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("call", [IO_URING_SETUP, IO_URING_ENTER])
@pytest.mark.parametrize("error", [EPERM, ENOSYS])
def test_where_io_uring_is_forbidden_threads_read(model: Path, call: int, error: int) -> None:
    free, bound = _run(model), _run(model, preexec_fn=_without(call, error))
    if bound.returncode == 97:
        pytest.skip("no seccomp here")
    assert (bound.returncode, bound.stdout) == (0, free.stdout)


def test_first_uses_at_once_all_answer(model: Path, tmp_path: Path) -> None:
    right = _run(model).stdout
    for _ in range(2):
        shutil.rmtree(tmp_path / "cache")
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started = [subprocess.Popen([*RUN, str(model)], text=True, **pipes) for _ in range(4)]  # type: ignore[call-overload]
        assert [(*p.communicate(timeout=100), p.returncode) for p in started] == [(right, "", 0)] * 4


def test_a_read_only_cache_that_holds_what_is_needed(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = _run(model)
    mounts = f"mount --bind '{cache}' '{cache}' && mount -o remount,ro,bind '{cache}'"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "sh", "-c", mounts], check=False).returncode:
        pytest.skip("no mounts here")
    command = " ".join(f"'{word}'" for word in [*RUN, str(model)])
    again = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mounts} && {command}"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (again.returncode, again.stdout) == (0, first.stdout)
