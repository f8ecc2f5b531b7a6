"""llama.cpp compiled on one machine and run on another: said in words, where it was "Illegal instruction"."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tinymoe
from console import needs_library

from edgemoe import _native

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")

pytestmark = [
    needs_library,
    pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulated processors are x86-64"),
    pytest.mark.skipif("ggml-cpu-" in _native.build_info(), reason="this llama.cpp has kernels for every processor"),
]


def on_nehalem(*command: object) -> subprocess.CompletedProcess[str]:
    """A processor of 2008: SSE4.2 and nothing wider."""
    done = subprocess.run(
        [str(QEMU), "-cpu", "Nehalem", *map(str, command)], capture_output=True, text=True, check=False
    )
    done.stderr = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("qemu-x86_64"))
    return done


@pytest.mark.parametrize("command", ["run", "devices"])
def test_a_command_says_so_and_what_to_do(command: str, tmp_path: Path) -> None:
    arguments = [tinymoe.write(tmp_path / "m.gguf", "qwen3moe"), "-p", "x"] if command == "run" else []
    done = on_nehalem(sys.executable, "-m", "edgemoe", command, *arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 2, done.stderr
    assert lines[0].startswith("edgemoe: llama.cpp was compiled for another processor: its kernels use AVX")
    assert lines[1].startswith("hint: compile it here: `pip install") and _native.LLAMA_VERSION in lines[1]
