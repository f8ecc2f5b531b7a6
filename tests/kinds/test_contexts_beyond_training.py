"""`--ctx` beyond what the model was trained for is cut, and everybody says so; a hint about it leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import serving
import tinymoe
from console import Cli, needs_library

import edgemoe

pytestmark = needs_library

SAID = "`--ctx 8192` is more than the model was trained for: the context is cut to 4,096 tokens"


@pytest.mark.parametrize(
    "command", [("plan",), ("run", "-p", "hi", "-n", "2"), ("run", "-p", "hi", "-n", "2", "-v"), ("chat",)]
)
def test_a_context_that_is_cut_is_told(cli: Cli, good: Path, command: tuple[str, ...]) -> None:
    done = cli(command[0], good, *command[1:], "--memory", "300MiB", "--ctx", "8192")
    assert done.returncode == 0
    assert (done.stdout + done.stderr).count(SAID) == 1
    assert SAID not in (again := cli(command[0], good, *command[1:], "--memory", "300MiB", "-c", "4096")).stderr
    assert SAID not in again.stdout


def test_the_server_says_it_too(good: Path, tmp_path: Path) -> None:
    with serving.serve(tmp_path, good, "--memory", "300MiB", "--ctx", "8192") as served:
        pass
    assert SAID in "\n".join(served.talk)


def test_the_library_has_it(good: Path) -> None:
    said = f"{SAID} (`--rope-scaling yarn --rope-scale N` for more)"
    assert edgemoe.plan(good, memory="2GiB", ctx=8192, measure=False).context_line == said
    assert edgemoe.plan(good, memory="2GiB", ctx=1024, measure=False).context_line == ""


def test_the_hint_of_a_long_prompt_can_be_followed(cli: Cli, tmp_path: Path) -> None:
    model = tinymoe.write(tmp_path / "m.gguf", "qwen3moe")
    for n_word, followed in ((500, True), (800, True), (1100, False)):  # 5 tokens each; trained for 4,096
        ask = ("run", model, "-p", "abcd " * n_word, "-n", "2", "--memory", "300MiB")
        refused = cli(*ask, "--ctx", "256")
        assert refused.returncode == 2
        hinted = re.search(r"--ctx (\d+)", refused.stderr.splitlines()[-1])
        assert bool(hinted) == followed, refused.stderr
        if hinted:
            assert cli(*ask, "--ctx", hinted[1]).returncode == 0
        else:
            assert "was trained for 4,096 tokens" in refused.stderr
