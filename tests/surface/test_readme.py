"""The README is right: its Python runs, its commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from console import PACKAGE, Cli, needs_library

README = PACKAGE.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="not a checkout: no README.md")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


@needs_library
def test_the_python_runs(good: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(good)
    assert blocks("python")
    for program in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_commands_and_their_options_exist(cli: Cli) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line.split("|")[-1], comments=True) for line in lines if "edgemoe " in line]
    assert len(commands) >= 5
    for _, command, *arguments in commands:
        text = cli(command, "--help").stdout
        for option in (argument for argument in arguments if argument.startswith("-")):
            assert f"{option} " in text or f"{option}," in text, f"edgemoe {command} {option}"
