"""Help and version: cheap, complete, and honest about what is lossy."""

from __future__ import annotations

import subprocess
import sys

import pytest
from console import Cli

WITH_MODEL = ("chat", "run", "demo", "inspect", "plan", "bench")
COMMANDS = (*WITH_MODEL, "models", "serve", "replay", "eval", "calibrate", "convert", "shrink")
HEAVY = (
    "numpy",
    "llama_cpp",
    "gguf",
    "rich",
    "jinja2",
    "psutil",
    "pydantic",
    "onnx",
    "onnxruntime",
    "starlette",
    "uvicorn",
    "msgspec",
)


def test_help_names_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
    assert done.stderr == ""


def test_no_arguments_print_the_help(cli: Cli) -> None:
    assert cli().stdout == cli("--help").stdout


@pytest.mark.parametrize("command", WITH_MODEL)
def test_every_command_explains_itself(cli: Cli, command: str) -> None:
    done = cli(command, "-h")
    assert done.returncode == 0
    assert "MODEL" in done.stdout or "SRC" in done.stdout


def test_what_is_lossy_says_so(cli: Cli) -> None:
    text = " ".join(cli("chat", "--help").stdout.split())
    assert "`q8_0` for half the memory, which is LOSSY" in text


def test_the_temperature_says_where_its_default_is_from(cli: Cli) -> None:
    text = " ".join(cli("chat", "--help").stdout.split())
    assert "0 always takes the likeliest token. [default: (as the model's maker says, else llama.cpp's)]" in text


def test_version_is_the_package_version(cli: Cli) -> None:
    import edgemoe

    assert cli("--version").stdout == f"edgemoe {edgemoe.__version__}\n"


def test_help_loads_nothing_heavy(environment: dict[str, str]) -> None:
    program = (
        "import sys, edgemoe.cli\n"
        "try: edgemoe.cli.main(['chat', '--help'])\n"
        "except SystemExit: pass\n"
        f"found = sorted(set(sys.modules) & set({HEAVY!r}))\n"
        "assert not found, found\n"
        "assert 'llama' not in open('/proc/self/maps').read()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
