"""Output into a pipe or file is UTF-8, whatever character set the system would have chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tinymoe
from console import needs_library

pytestmark = needs_library


def run(encoding: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "edgemoe", *map(os.fsencode, map(str, arguments))],
        env={**os.environ, "PYTHONIOENCODING": encoding, "EDGEMOE_CACHE": str(cwd / "cache")},
        cwd=cwd,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("command", [("inspect",), ("plan", "--memory", "1GiB")])
def test_bars_and_dashes_do_not_end_in_a_traceback(tmp_path: Path, encoding: str, command: tuple[str, ...]) -> None:
    model = tinymoe.write(tmp_path / "größe.gguf", "qwen3moe")
    plain = run("utf-8", command[0], model, *command[1:], cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    other = run(encoding, command[0], model, *command[1:], cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert other.stdout.decode("utf-8").splitlines()[0] == plain.stdout.decode("utf-8").splitlines()[0]
    assert command[0] != "inspect" or "–".encode() in other.stdout


def test_a_file_name_that_is_no_text_comes_out_as_it_is(tmp_path: Path) -> None:
    tinymoe.write(tmp_path / "m.gguf", "qwen3moe")
    name = os.fsencode(tmp_path) + b"/caf\xe9.gguf"
    os.rename(tmp_path / "m.gguf", name)
    done = subprocess.run(
        [sys.executable, "-m", "edgemoe", "inspect", name],
        env={**os.environ, "EDGEMOE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
