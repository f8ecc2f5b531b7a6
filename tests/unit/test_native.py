"""Loading the library: what is missing is one clear error, and libllama is in a process once."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import edgemoe
from edgemoe import _native
from edgemoe.errors import NativeError

library = importlib.import_module("edgemoe._native.library")

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def unloaded() -> Iterator[None]:
    _native.library.cache_clear()
    yield
    _native.library.cache_clear()


def test_a_missing_library_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(edgemoe, "__path__", [str(tmp_path)])
    with pytest.raises(NativeError, match=r"libedgemoe\.\w+` is missing|edgemoe\.dll` is missing") as caught:
        _native.library()
    assert "pip install -e ." in caught.value.hint


def test_a_library_that_is_none_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    for stem in ("edgemoe", "edgemoe-llama"):  # with a llama.cpp of its own, so that no other is asked for
        (tmp_path / "lib" / library._library_name(stem)).write_bytes(b"not a library")
    monkeypatch.setattr(edgemoe, "__path__", [str(tmp_path)])
    with pytest.raises(NativeError, match="cannot load the native library"):
        _native.library()


def llama_package(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(folder)]) if folder else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_llama_cpp_python_must_be_there_in_the_pinned_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llama_package(monkeypatch, None)
    with pytest.raises(NativeError, match="not installed") as caught:
        library.llama_package()
    assert _native.LLAMA_VERSION in caught.value.hint

    (tmp_path / "__init__.py").write_text('from .llama import *\n\n__version__ = "0.0.1"\n')
    llama_package(monkeypatch, tmp_path)
    with pytest.raises(NativeError, match=r"is 0\.0\.1, edgemoe needs exactly"):
        library.llama_package()

    (tmp_path / "__init__.py").write_text(f'__version__ = "{_native.LLAMA_VERSION}"\n')
    with pytest.raises(NativeError, match="has no"):
        library.llama_package()


def test_the_pin_is_the_one_of_the_project_file() -> None:
    assert f'"llama-cpp-python=={_native.LLAMA_VERSION}"' in (ROOT / "pyproject.toml").read_text()


def test_the_version_is_one_in_all_files_that_name_it() -> None:
    version = edgemoe.__version__
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"project(edgemoe VERSION {version} " in (ROOT / "native" / "CMakeLists.txt").read_text()
    assert f"## [{version}] - 20" in (ROOT / "CHANGELOG.md").read_text()


def test_a_kernel_without_io_uring_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _native.io_uring_allowed() in (True, False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(syscall=lambda *arguments: -1))
    assert _native.io_uring_allowed() is False


def test_io_uring_is_not_tried_on_android(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app's seccomp filter answers the call with SIGSYS, which ends the process."""

    def probed(name: object) -> None:
        raise AssertionError("a system call was made")

    monkeypatch.setattr(sys, "platform", "linux")  # what Termux says of itself
    monkeypatch.setattr(sys, "getandroidapilevel", lambda: 28, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", probed)
    assert _native.io_uring_allowed() is False


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_native_reader_has_no_io_uring_on_android() -> None:
    command = ["c++", "-std=c++17", "-E", f"-I{ROOT}/native/src", f"-I{ROOT}/native/include"]
    file = ROOT / "native" / "src" / "io" / "uring.cpp"
    for flags, there in (([], sys.platform == "linux"), (["-D__ANDROID__"], False)):
        seen = subprocess.run([*command, *flags, file], check=True, capture_output=True, text=True).stdout
        assert ("ring_setup" in seen) is there


OURS = "from edgemoe import _native; _native.library()"
THEIRS = "import llama_cpp; llama_cpp.llama_backend_init()"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("order", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
def test_a_process_has_one_libllama_whichever_comes_first(order: tuple[str, str]) -> None:
    script = "\n".join([*order, "print(open('/proc/self/maps').read())"])
    maps = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for stem in ("libllama.so", "libggml.so", "libggml-base.so", "libggml-cpu.so", "libedgemoe.so"):
        files = {tuple(line.split()[3:5]) for line in maps.splitlines() if f"/{stem}" in line}  # device, inode
        assert len(files) == 1, f"{stem} is mapped from {len(files)} files"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_the_library_alone_imports_neither_numpy_nor_llama_cpp() -> None:
    script = f"import sys\n{OURS}\nprint({{'numpy', 'llama_cpp', 'psutil', 'jinja2'}} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "set()"
