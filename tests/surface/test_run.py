"""`edgemoe run`: the answer alone on stdout, from every source of prompts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from console import Cli, needs_library

pytestmark = needs_library

GREEDY = ("--temp", "0", "-n", "12")


@pytest.fixture(scope="module")
def answer(cli: Cli, good: Path) -> str:
    done = cli("run", good, "-p", "hello there", *GREEDY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    return done.stdout


def test_only_the_answer_is_printed(cli: Cli, good: Path, answer: str) -> None:
    done = cli("run", good, "-p", "hello there", *GREEDY)
    assert done.stdout == answer
    assert done.stderr == ""


def test_stdin_file_and_flag_are_the_same_prompt(cli: Cli, good: Path, answer: str, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("hello there\n")
    assert cli("run", good, *GREEDY, stdin="hello there\n").stdout == answer
    assert cli("run", good, "-p", "-", *GREEDY, stdin="hello there\n").stdout == answer
    assert cli("run", good, "-f", "-", *GREEDY, stdin="hello there\n").stdout == answer
    assert cli("run", good, "-f", prompt, *GREEDY).stdout == answer


def test_an_answer_is_the_same_in_every_run(cli: Cli, good: Path, answer: str) -> None:
    ask = ("run", good, "-p", "hello there", "-n", "12")
    picked = cli(*ask).stdout
    assert picked == cli(*ask).stdout != answer
    assert cli(*ask, "--seed", "-1").stdout != cli(*ask, "--seed", "-1").stdout


def test_raw_leaves_the_template_out(cli: Cli, good: Path, answer: str) -> None:
    assert cli("run", good, "-p", "hello there", "--raw", *GREEDY).stdout != answer


def test_a_seed_repeats_the_answer(cli: Cli, good: Path) -> None:
    first, second, other = (
        cli("run", good, "-p", "hello", "-n", "24", "--temp", "1.5", "--seed", seed).stdout for seed in (7, 7, 8)
    )
    assert first == second != other


def test_verbose_shows_plan_and_cost_on_stderr(cli: Cli, good: Path, answer: str) -> None:
    done = cli("run", good, "-p", "hello there", "-v", *GREEDY)
    assert done.stdout == answer
    assert "expert cache" in done.stderr
    assert "the page cache" in done.stderr
    assert "tok/s" in done.stderr


def test_a_reader_that_goes_away_is_no_error(good: Path, environment: dict[str, str]) -> None:
    command = f"{sys.executable} -m edgemoe run {good} -p hello -n 200 | head -c 1"
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_ctrl_c_exits_130_quietly(good: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "edgemoe", "run", str(good), "-p", "hello", "--temp", "3", "--ctx", "4096"]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read(1)  # it is answering
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, talk = child.communicate(timeout=60)
    assert child.returncode == 130
    assert talk == b""
