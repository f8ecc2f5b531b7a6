"""apps/ios: the Swift wrapper says what Python says, where there is a Swift compiler (on Debian 13: swiftlang)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import edgemoe
from edgemoe import Sampling

from .conftest import APPS, need, packages
from .test_android import TALK


def test_the_module_is_the_header() -> None:
    header = APPS / "ios" / "Sources" / "CEdgeMoE" / "edgemoe.h"
    (line,) = [line for line in header.read_text().splitlines() if line.startswith("#include")]
    named = header.parent / line.split('"')[1]
    assert named.resolve() == (APPS.parent / "native" / "include" / "edgemoe.h").resolve()
    assert not header.is_symlink()  # a clone without symbolic links builds as well


@pytest.mark.slow
def test_the_swift_wrapper_says_what_python_says(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swift = need("swift")
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))
    with edgemoe.load(tiny, memory="2GiB", ctx=512, threads=1) as engine:
        answer = "".join(engine.chat(TALK, max_tokens=50, sampling=Sampling(temp=0.8, seed=7)))
    package = shutil.copytree(APPS / "ios", tmp_path / "apps" / "ios")  # its build folder is not the checkout's
    shutil.copytree(APPS.parent / "native" / "include", tmp_path / "native" / "include")
    ours, llama = packages()
    flags: list[str] = []
    for flag in (f"-L{ours}", f"-L{llama}", "-lllama", "-lggml", "-lggml-base", "-lggml-cpu",
                 "-rpath", str(ours), "-rpath", str(llama)):  # fmt: skip
        flags += ["-Xlinker", flag]
    done = subprocess.run(
        [swift, "run", *flags, "edgemoe-smoke", str(tiny), str(tmp_path / "cache")],
        cwd=package,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning: " not in done.stderr.replace("warning: libc not found", "")
    assert done.stdout == answer
