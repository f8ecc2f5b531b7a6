"""`edgemoe chat`: from a pipe, and at a terminal with a person's habits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import Cli, needs_library
from terminal import terminal

pytestmark = needs_library

GREEDY = ("--temp", "0", "-n", "8")


def test_a_pipe_gets_answers_and_nothing_else(cli: Cli, good: Path) -> None:
    done = cli("chat", good, *GREEDY, stdin="hello\n\nagain\n")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("\n") >= 2
    assert ">>>" not in done.stdout


def test_the_conversation_is_remembered_and_can_be_forgotten(cli: Cli, good: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    lines = ["/system be brief", "one", '"""two', 'lines"""', f"/save {first}", "/clear", "three", f"/save {second}"]
    done = cli("chat", good, *GREEDY, stdin="\n".join(lines))
    assert done.returncode == 0, done.stderr
    said = [(message["role"], message["content"]) for message in json.loads(first.read_text())]
    assert said[0] == ("system", "be brief")
    assert [text for role, text in said if role == "user"] == ["one", "two\nlines"]
    assert [role for role, _ in said[1:]] == ["user", "assistant"] * 2
    assert [m["content"] for m in json.loads(second.read_text()) if m["role"] != "assistant"] == ["be brief", "three"]


def test_regen_replaces_the_answer(cli: Cli, good: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    lines = f"hello\n/regen\n/save {saved}\n"
    done = cli("chat", good, "-n", "24", "--seed", "3", "--temp", "1.5", stdin=lines)
    assert done.returncode == 0, done.stderr
    answers = [message["content"] for message in json.loads(saved.read_text()) if message["role"] == "assistant"]
    assert len(answers) == 1
    assert done.stdout.rstrip("\n").endswith(answers[0].rstrip("\n"))
    assert done.stdout != f"{answers[0]}\n{answers[0]}\n"


def test_regen_says_when_it_changes_nothing(cli: Cli, good: Path) -> None:
    done = cli("chat", good, "-n", "8", "--temp", "0", stdin="hello\n/regen\n")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert "`/set temp 0.7`" in done.stderr


def test_a_small_budget_knows_the_capital_of_france(cli: Cli, smolmoe: Path) -> None:
    done = cli("chat", smolmoe, "--memory", "160M", "--temp", "0", stdin="What is the capital of France?\n")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_verbose_answers_say_what_they_cost_and_how_experts_are_read(cli: Cli, good: Path) -> None:
    done = cli("chat", good, "-v", *GREEDY, stdin="hello\n/stats\n")
    assert done.returncode == 0, done.stderr
    assert "tok/s" in done.stderr and "the page cache" in done.stderr
    assert "reading  " in done.stdout


def test_a_budget_changes_in_the_middle(cli: Cli, good: Path) -> None:
    done = cli("chat", good, "--memory", "200M", *GREEDY, stdin="hello\n/memory 150M\nagain\n/stats\n")
    assert done.returncode == 0, done.stderr
    assert "of 150 MiB" in done.stdout


def test_the_oldest_turns_make_room_and_it_is_said(cli: Cli, good: Path) -> None:
    question = "word " * 12
    done = cli("chat", good, "--ctx", "256", "-n", "8", "--temp", "0", stdin=f"{question}\n" * 6)
    assert done.returncode == 0, done.stderr
    assert "turn is forgotten" in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/bogus", "`/bogus` is not a command"),
        ("/memory banana", "`banana` is not a size"),
        ("/stats live", "needs a terminal"),
        ("/stats all", "shows nothing"),
        ("/memory 1M", "is too small"),
        ("/regen", "there is no answer"),
        ("/set warmth 3", "sets nothing"),
        ("/set temp hot", "is no number for `temp`"),
        ("/set top_p 3", "`--top-p 3.0` makes no sense"),
        ("/set num_predict 0", "makes no sense"),
        ("/load", "needs a file name"),
        ("/load /nowhere/x.json", "there is no file `/nowhere/x.json`"),
        ("/resume", "no earlier conversation"),
        ("/save", "needs a file name"),
        ("/save /nowhere/x.json", "cannot write `/nowhere/x.json`"),
    ],
)
def test_a_wrong_command_in_a_pipe_ends_it_with_one_line(cli: Cli, good: Path, line: str, words: str) -> None:
    done = cli("chat", good, *GREEDY, stdin=f"{line}\nhello\n")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_save_overwrites_nothing_of_others(cli: Cli, good: Path, tmp_path: Path) -> None:
    other = tmp_path / "thesis.txt"
    other.write_text("years of work")
    assert cli("chat", good, *GREEDY, stdin=f"hello\n/save {other}\n").returncode == 2
    assert other.read_text() == "years of work"


def test_at_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(good: Path, environment: dict[str, str]) -> None:
    with terminal(["chat", str(good), "--temp", "3", "--ctx", "4096", "--seed", "1"], environment) as person:
        assert "experts fit, each is read once; 4,096 tokens of context" in person.expect(">>> ")
        person.type("hello\r")
        person.expect("hello\r\n.{20}")  # it is answering, and would for thousands of tokens
        person.interrupt()
        assert "Traceback" not in person.expect("tok/s.*\r\n>>> ")
        person.type("/stats\r")
        assert "by layer" in person.expect(">>> ")
        person.type("/exit\r")
        assert person.child.wait(timeout=30) == 0


def test_at_a_terminal_mistakes_go_on(good: Path, environment: dict[str, str]) -> None:
    with terminal(["chat", str(good), *GREEDY], environment) as person:
        person.expect(">>> ")
        person.type("/bogus\r")
        person.expect("hint: `/help` lists them")
        person.expect(">>> ")
        person.type("/help\r")
        assert "/memory SIZE" in person.expect(">>> ")
        person.type("\x04")  # Ctrl-D
        assert person.child.wait(timeout=30) == 0


def test_at_a_terminal_the_table_follows_the_answer(good: Path, environment: dict[str, str]) -> None:
    with terminal(["chat", str(good), *GREEDY, "--memory", "200M"], {**environment, "COLUMNS": "120"}) as person:
        person.expect(">>> ")
        person.type("/stats live\r")
        person.expect("the table follows each answer")
        person.expect(">>> ")
        person.type("hello\r")
        shown = person.expect(">>> ")
        assert "by layer" in shown and "Traceback" not in shown
        person.type("/stats live\r")
        person.expect("no table any more")
        person.expect(">>> ")
        person.type("hello\r")
        assert "by layer" not in person.expect(">>> ")
        person.type("/memory\r")
        person.expect("of 200 MiB")  # what the table's library took is inside the budget


def test_at_the_prompt_ctrl_c_twice_leaves(good: Path, environment: dict[str, str]) -> None:
    with terminal(["chat", str(good), *GREEDY], environment) as person:
        person.expect(">>> ")
        person.interrupt()
        person.expect("Ctrl-D or /exit leaves")
        person.expect(">>> ")
        person.interrupt()
        assert person.child.wait(timeout=30) == 130
        assert "Traceback" not in person.seen
