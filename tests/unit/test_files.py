"""What differs between systems is in `edgemoe/files.py`, and does there what it says."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import edgemoe
from edgemoe import files, paths, places

SOURCES = sorted(Path(edgemoe.__file__).parent.rglob("*.py"))
ELSEWHERE_MISSING = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "msvcrt", "winreg"}


def test_nothing_imports_what_another_system_lacks() -> None:
    """At import, that is: what stands under a question for the system or in a function is asked for there."""
    found = []
    for source in SOURCES:
        for node in ast.parse(source.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(source.name, name) for name in names if name.split(".")[0] in ELSEWHERE_MISSING]
    assert len(SOURCES) > 100 and found == []


def test_bytes_are_read_and_written_at_their_places(tmp_path: Path) -> None:
    fd = files.open_fd(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    try:
        workers = [
            threading.Thread(target=files.write_at, args=(fd, bytes([i]) * 10_000, i * 10_000)) for i in range(8)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        block = bytearray(10_000)
        for i in range(8):
            assert files.read_at(fd, memoryview(block), i * 10_000) == 10_000 and block == bytes([i]) * 10_000
        assert files.read_at(fd, memoryview(block), 79_990) == 10
        assert files.read_at(fd, memoryview(block), 80_000) == 0
        files.sync_data(fd)
        files.drop_cached(fd)
        assert files.disk_bytes(fd) >= 80_000
    finally:
        os.close(fd)
    files.sync_folder(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"".join(bytes([i]) * 10_000 for i in range(8))


def test_no_byte_is_changed_on_its_way(tmp_path: Path) -> None:
    content = b"a\r\nb\nc\x1ad\0"
    fd = files.open_fd(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    files.write_at(fd, content, 0)
    os.close(fd)
    assert (tmp_path / "a").read_bytes() == content


def _child(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys\nfrom pathlib import Path\nfrom edgemoe import files\n{script}"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_has_one_writer_until_it_has_its_name(tmp_path: Path) -> None:
    path, final = tmp_path / "a.partial", tmp_path / "a"
    other = "try: files.open_locked(Path(sys.argv[1]), os.O_RDWR); print('mine')\nexcept BlockingIOError: print('busy')"
    fd, lock = files.open_locked(path, os.O_RDWR)
    files.write_at(fd, b"whole", 0)
    assert _child(other, path).stdout == "busy\n"
    os.close(fd)  # as it must be where an open file keeps its name
    assert _child(other, path).stdout == "busy\n"
    os.replace(path, final)
    os.close(lock)
    assert _child(other, path).stdout == "mine\n"
    assert final.read_bytes() == b"whole" and path.read_bytes() == b""


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    other = "try: files.lock_folder(Path(sys.argv[1])); print('mine')\nexcept BlockingIOError: print('busy')"
    lock = files.lock_folder(folder)
    assert _child(other, folder).stdout == "busy\n"
    assert list(folder.iterdir()) == []
    os.close(lock)
    assert _child(other, folder).stdout == "mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


@pytest.mark.parametrize(
    ("system", "variables", "folder"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/a/.cache"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/home/a/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local"),
        ("win32", {"LOCALAPPDATA": ""}, "/home/a/AppData/Local"),
    ],
)
def test_derived_data_lies_where_the_system_wants_it(
    system: str, variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda _: "/home/a")
    monkeypatch.setattr("sys.platform", system)
    for name, value in {"LLAMA_CACHE": "", "HF_HOME": "", "EDGEMOE_CACHE": "", **variables}.items():
        monkeypatch.setenv(name, value)
    assert paths.user_cache() == Path(folder)
    llama = [place.folder for place in places._known_places() if place.label == "llama.cpp"]
    assert llama == [Path(folder, "llama.cpp")]
    # The hub's client goes by Linux' rule everywhere.
    assert places.hub_cache() == Path(variables.get("XDG_CACHE_HOME") or "/home/a/.cache", "huggingface", "hub")


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "chosen"))
    assert paths.cache_dir() == tmp_path / "chosen" and paths.cache_dir().is_dir()


def test_a_port_is_one_programs() -> None:
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            files.own_port(listener)
        first.bind(("127.0.0.1", 0))
        first.listen()
        with pytest.raises(OSError):
            second.bind(first.getsockname())


def test_a_request_to_end_calls_and_the_old_meaning_comes_back() -> None:
    before, called = signal.getsignal(signal.SIGTERM), threading.Event()
    with files.told_to_stop(called.set):
        signal.raise_signal(signal.SIGTERM)
        assert called.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_arrives_is_told_from_what_does_not() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream:
        begin = time.monotonic()
        waits = sys.platform != "win32"
        assert files.arrives(stream, 0.05) is not waits and (time.monotonic() - begin >= 0.04) is waits
        os.write(write, b"x")
        assert files.arrives(stream, 5)
        os.close(write)
