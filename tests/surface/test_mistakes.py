"""Every mistake a person can make at the console: one clear line, what to do, exit code 1 or 2, no traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from console import Cli, needs_library

FAILED, MISUSED = 1, 2


def assert_refused(cli: Cli, code: int, words: str, *arguments: object, stdin: str = "hello\n") -> None:
    done = cli(*arguments, stdin=stdin)
    talk = done.stderr
    assert "Traceback" not in talk
    assert done.returncode == code, talk
    errors = [line for line in talk.splitlines() if line.startswith("edgemoe: ")]
    assert len(errors) == 1, talk
    assert words in errors[0]
    assert not errors[0].endswith(".")
    assert "hint: " in talk
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chta", "x.gguf"], "did you mean `chat`"),
        (["chat", "no-such-model"], "there is no model `no-such-model` on this machine"),
        (["chat", ""], "an empty name names no model"),
        (["chat", "hf:nonsense"], "`hf:nonsense` is no name on the hub"),
        (["demo", "-n", "0"], "`--max-tokens 0` makes no sense"),
        (["models", "--memory", "banana"], "`banana` is not a size"),
        (["chat", "x.gguf", "y.gguf"], "unexpected extra argument"),
        (["chat", "x.gguf", "--colour"], "no such option: --colour"),
        (["chat", "x.gguf", "--memory"], "--memory"),
        (["run", "x.gguf", "-p", "a", "-f", "b"], "`-p` and `-f` both give a prompt"),
        (["run", "x.gguf", "-p", "  "], "the prompt is empty"),
        (["run", "x.gguf", "-f", "/nowhere/prompt.txt"], "cannot read `/nowhere/prompt.txt`"),
        (["run", "x.gguf", "-p", "a", "--raw", "--system", "b"], "`--raw` uses no chat template"),
        (["bench", "x.gguf", "--repeat", "0"], "`--repeat 0` makes no sense"),
        (["bench", "x.gguf", "--decode", "0"], "`--decode 0` makes no sense"),
        (["bench", "x.gguf", "--against", "vllm"], "cannot compare with `vllm`"),
        (["bench", "x.gguf", "--text", "/nowhere/text"], "cannot read the text `/nowhere/text`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_refused_before_anything_is_opened(cli: Cli, arguments: list[str], words: str) -> None:
    assert_refused(cli, MISUSED, words, *arguments)


def test_a_benchmark_with_nowhere_to_write_is_refused_before_it_runs(cli: Cli) -> None:
    assert_refused(cli, FAILED, "cannot write `/nowhere/x.json`", "bench", "x.gguf", "--json", "/nowhere/x.json")


@pytest.mark.parametrize("command", ["chat", "run"])
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--memory", "0"),
        ("--memory", "banana"),
        ("--memory", "-1G"),
        ("--memory", "0%"),
        ("--memory", "101%"),
        ("--memory", "nan"),
        ("--memory", "99999999T"),
        ("--ctx", "-1"),
        ("--ctx", "0"),
        ("--ctx", "many"),
        ("--threads", "0"),
        ("--threads", "-2"),
        ("--threads", "100000"),
        ("--temp", "nan"),
        ("--temp", "-1"),
        ("--temp", "inf"),
        ("--temp", "warm"),
        ("--top-k", "-5"),
        ("--top-p", "7"),
        ("--top-p", "0"),
        ("--min-p", "-0.1"),
        ("--min-p", "2"),
        ("--repeat-penalty", "0"),
        ("--seed", "-2"),
        ("--seed", "99999999999"),
        ("--max-tokens", "0"),
        ("--cache-policy", "magic"),
        ("--kv-type", "q2_k"),
    ],
)
@needs_library
def test_absurd_flags_are_refused(cli: Cli, good: Path, command: str, flag: str, value: str) -> None:
    assert_refused(cli, MISUSED, value.rstrip("%").lstrip("-"), command, good, flag, value)


@pytest.mark.parametrize("command", ["chat", "run", "inspect", "plan", "bench"])
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("missing.gguf", MISUSED, "does not exist"),
        ("folder.gguf", MISUSED, "is a folder"),
        ("empty.gguf", FAILED, "empty.gguf"),
        ("text.gguf", FAILED, "is not a GGUF file"),
        ("stub.gguf", FAILED, "stub.gguf"),
        ("truncated.gguf", FAILED, "truncated.gguf"),
        ("dense.gguf", FAILED, ""),
        ("split-00001-of-00002.gguf", FAILED, "split-00002-of-00002.gguf"),
    ],
)
@needs_library
def test_wrong_files_are_refused(cli: Cli, models: Path, command: str, name: str, code: int, words: str) -> None:
    assert_refused(cli, code, words, command, models / name)


@pytest.mark.parametrize("command", ["chat", "run", "plan", "bench"])
@needs_library
def test_a_budget_that_is_too_small_names_the_smallest_that_works(cli: Cli, good: Path, command: str) -> None:
    assert_refused(cli, MISUSED, "is too small for", command, good, "--memory", "20M")
    hint = cli(command, good, "--memory", "20M", stdin="hello\n").stderr.splitlines()[-1]
    assert "`--memory " in hint
    smallest = hint.split("`--memory ")[1].split("`")[0]
    assert cli("plan", good, "--memory", smallest).returncode == 0


@needs_library
def test_a_prompt_longer_than_the_context_says_both_numbers(cli: Cli, good: Path) -> None:
    done = cli("run", good, "--ctx", "256", stdin="word " * 500)
    assert done.returncode == MISUSED
    assert "2,517" in done.stderr
    assert "256" in done.stderr
    assert "--ctx" in done.stderr
    assert "Traceback" not in done.stderr


@needs_library
def test_a_cache_folder_that_cannot_be_made_is_one_line(
    cli: Cli, good: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(environment, "EDGEMOE_CACHE", "/proc/nowhere")
    assert_refused(cli, FAILED, "/proc/nowhere", "run", good, "-p", "hello")


@pytest.mark.parametrize(
    ("code", "words", "flags"),
    [
        (MISUSED, "`tpu` is not a device", ["--device", "tpu"]),
        (MISUSED, "`--gpu-memory` is for a GPU", ["--gpu-memory", "1G"]),
        (FAILED, "this llama.cpp sees no Metal device", ["--device", "metal"]),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="there is a Metal device")
@needs_library
def test_devices_that_are_not_there_are_refused(cli: Cli, good: Path, code: int, words: str, flags: list[str]) -> None:
    assert_refused(cli, code, words, "plan", good, *flags)
