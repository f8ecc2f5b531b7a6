"""A standard stream is closed, or its encoding lacks what is written: the command does its work all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import speaking
from console import needs_library

pytestmark = needs_library

EDGEMOE = f"{sys.executable} -m edgemoe"


def shell(command: str, environment: dict[str, str], **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        env={**environment, **more},
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", ["chat {} <&-", "run {} -p hi -n 4 2>&-", "run {} -p hi -n 4 <&- 2>&-"])
def test_a_closed_stream_is_as_one_that_nobody_uses(good: Path, environment: dict[str, str], command: str) -> None:
    done = shell(f"{EDGEMOE} {command.format(good)}", environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout.strip()) == command.startswith("run")


def test_without_a_stdout_nothing_fails(good: Path, environment: dict[str, str]) -> None:
    done = shell(f"{EDGEMOE} plan {good} --memory 300MiB >&-", environment)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_file_never_gets_the_number_of_a_closed_stream(
    good: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    done = shell(f"{EDGEMOE} convert {good} {out} --verify <&- >&- 2>&-", environment)
    assert done.returncode == 0
    assert shell(f"{EDGEMOE} convert {good} {out} --verify", environment).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_what_cannot_be_written_is_one_line(good: Path, environment: dict[str, str]) -> None:
    done = shell(f"{EDGEMOE} plan {good} --memory 300MiB >/dev/full", environment)
    assert done.returncode == 1
    assert "no space left on device" in done.stderr.decode().splitlines()[0] and b"Traceback" not in done.stderr


def test_a_reader_that_goes_is_no_error(good: Path, environment: dict[str, str]) -> None:
    done = shell(f"{EDGEMOE} inspect {good} --json | head -c 1", environment)
    assert done.stderr == b""


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_answer_goes_on_past_a_character_that_the_encoding_lacks(
    tmp_path: Path, environment: dict[str, str], encoding: str
) -> None:
    model = speaking.write(tmp_path / "m.gguf", ["ok ", b"\xf0\x9f", b"\x98\x80", " end"])
    run = shell(f"{EDGEMOE} run {model} -p hi", environment, PYTHONIOENCODING=encoding)
    assert run.returncode == 0 and run.stdout.endswith(b" end\n"), run.stderr
    inspect = shell(f"{EDGEMOE} inspect {model}", environment, PYTHONIOENCODING=encoding)
    assert inspect.returncode == 0, inspect.stderr
