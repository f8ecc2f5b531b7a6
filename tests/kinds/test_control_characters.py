"""Names in files, names of files, and what a model says: a terminal shows their control characters and obeys none."""

from __future__ import annotations

from pathlib import Path

import pytest
import speaking
import tinymoe
from console import Cli, needs_library
from terminal import terminal

from edgemoe.printable import plain, plain_lines, shown

EVIL = "nice\x1b]0;owned\x07\x1b[31m\u202e model"


def test_names_are_one_line_without_controls() -> None:
    assert plain("a\x1b[2Jb\nc\x9b\u2028") == "a\\x1b[2Jb\\nc\\x9b\\u2028"
    assert plain("m\udce8le") == "m\\xe8le"  # a byte that is no UTF-8
    assert plain("Größe 漢字 👩‍👩‍👧") == "Größe 漢字 👩‍👩‍👧"
    assert plain_lines("a\tb\r\nc") == "a\tb\\r\nc"


def test_answers_keep_their_lines() -> None:
    assert shown("a\tb\nc\x1b[31m\x07\x7f\x85") == "a\tb\nc\\x1b[31m\\x07\\x7f\\x85"
    assert shown("क\u200dष 👩\u200d👧") == "क\u200dष 👩\u200d👧"  # joiners are part of the text


@needs_library
@pytest.mark.parametrize(
    "command",
    [("inspect",), ("plan", "--memory", "300MiB"), ("run", "-p", "hi", "-v"), ("chat", "-v"), ("models",)],
    ids=lambda command: command[0],
)
def test_no_command_repeats_them(
    cli: Cli, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setitem(environment, "EDGEMOE_MODELS", str(tmp_path))
    model = speaking.write(tmp_path / "m\x1b[31m.gguf", ["a"], metadata={"general.name": EVIL})
    given = [command[0], *([] if command[0] == "models" else [model]), *command[1:]]
    done = cli(*given, stdin="" if command[0] == "run" else "hi\n")
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr):
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
    if command[0] != "plan":
        assert "\\x1b" in done.stdout + done.stderr


@needs_library
def test_errors_do_not_either(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad\x1b[2J.gguf").write_bytes(b"nothing")
    model = tinymoe.write(tmp_path / "m.gguf", "qwen3moe")
    for arguments in (
        ("run", tmp_path / "bad\x1b[2J.gguf", "-p", "hi"),
        ("run", "\x1b[2J", "-p", "hi"),
        ("chat", model, "--cache-policy", "\x1b[2J"),
        ("run", model, "--colour\x1b[2J"),
    ):
        done = cli(*arguments)
        assert done.returncode != 0
        assert "\x1b" not in done.stderr and "\\x1b[2J" in done.stderr


@needs_library
def test_a_pipe_gets_the_answer_as_it_is_and_a_terminal_sees_it(
    cli: Cli, environment: dict[str, str], tmp_path: Path
) -> None:
    model = speaking.write(tmp_path / "m.gguf", ["red\x1b[31m", "\ttab", "\x07 end"])
    assert cli("run", model, "-p", "hi").stdout == "red\x1b[31m\ttab\x07 end\n"
    with terminal(["chat", str(model)], environment) as person:
        person.expect(">>> ")
        person.type("hi\r")
        assert "red\\x1b[31m" in person.expect(r"\\x07 end")
