"""File names that are not UTF-8, from an old disk or archive: every command takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import serving
import tinymoe
from console import needs_library

pytestmark = needs_library


@pytest.fixture
def odd(tmp_path: Path) -> bytes:
    name = os.fsencode(tmp_path) + b"/mod\xe8le.gguf"
    os.rename(tinymoe.write(tmp_path / "m.gguf", "qwen3moe", expert_type="Q8_0", n_layer=2), name)
    return name


def call(environment: dict[str, str], *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "edgemoe", *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=120, check=False)


def test_every_command_takes_them(odd: bytes, environment: dict[str, str], tmp_path: Path) -> None:
    text = tmp_path / "t\udcff.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    calibration = tmp_path / "c\udcff.gguf"
    for arguments in (
        ("inspect", odd),
        ("plan", odd, "--json"),
        ("run", odd, "-p", "hi", "-n", "2"),
        ("run", odd, "-p", b"h\xe9", "-n", "2", "--trace", tmp_path / "t\udcff.trace"),
        ("replay", tmp_path / "t\udcff.trace", "--skip", "0"),
        ("chat", odd, "-n", "2", "--system", b"\xe9"),
        ("calibrate", odd, "--text", text, "-o", calibration, "--windows", "1", "--ctx", "32"),
        ("convert", odd, tmp_path / "o\udcff.gguf", "--bits", "4", "--calibration", calibration),
        ("convert", odd, tmp_path / "o\udcff.gguf", "--verify", "--calibration", calibration),
        ("eval", odd, "--text", text, "--ctx", "32", "--windows", "1"),
    ):
        done = call(
            environment, *arguments, stdin=f"hi\n/save {tmp_path}/saved.json\n".encode() * ("chat" in arguments)
        )
        assert done.returncode == 0, (arguments, done.stderr)
    found = gguf.GGUFReader(tmp_path / "o\udcff.gguf").fields["edgemoe.source.name"].contents()
    assert found == "mod\N{REPLACEMENT CHARACTER}le.gguf"


def test_errors_name_them(odd: bytes, environment: dict[str, str]) -> None:
    done = call(environment, "run", odd + b"x", "-p", "hi")
    assert done.returncode == 2 and b"mod\\xe8le.ggufx` does not exist" in done.stderr


def test_a_server_gives_them_a_name_that_can_be_sent(odd: bytes, tmp_path: Path) -> None:
    with serving.serve(tmp_path / "cache", os.fsdecode(odd)) as served:
        status, models = served.ask("/v1/models")
        assert status == 200
        name = models["data"][0]["id"]
        assert name == "mod\N{REPLACEMENT CHARACTER}le"
        status, _ = served.ask("/v1/completions", {"model": name, "prompt": "a", "max_tokens": 1})
        assert status == 200
