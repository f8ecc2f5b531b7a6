"""A chat goes on where the last one ended: its words, its state, the lines that were typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from console import Cli, needs_library
from terminal import terminal

from edgemoe.cli import settings
from edgemoe.errors import UsageError
from edgemoe.runtime.text.sampling import Sampling

pytestmark = needs_library

SMALL = ("--ctx", "512", "--memory", "300MiB", "-n", "6", "-t", "1")
LONG = "tell me something about the thing in the other place, and then of this one"


@pytest.fixture
def alone(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """An environment without a past."""
    return {**environment, "EDGEMOE_STATE": str(tmp_path / "state"), "EDGEMOE_CACHE": str(tmp_path / "cache")}


def saved(path: Path) -> list[str]:
    return [f"{m['role']}: {m['content']}" for m in json.loads(path.read_text())]


def test_a_conversation_is_resumed(good: Path, alone: dict[str, str], tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    with terminal(["chat", str(good), *SMALL, "--system", "be brief"], alone) as person:
        person.expect(">>> ")
        person.type(f"{LONG}\r")
        person.expect("tok/s.*\r\n>>> ")
        person.type(f"/save {first}\r")
        person.expect("saved to")
        person.type("/exit\r")
        assert person.child.wait(timeout=60) == 0
    (kept,) = (tmp_path / "state" / "chats").glob("*.json")
    assert kept.stat().st_mode & 0o777 == 0o600 and saved(kept) == saved(first)
    assert len(list((tmp_path / "cache" / "states").glob("*.state"))) == 1
    with terminal(["chat", str(good), *SMALL, "--resume"], alone) as person:
        assert f"1 questions taken up; the last was: {LONG[:20]}" in person.expect(">>> ")
        person.type("\x1b[A")  # the arrow up: what was typed last time
        person.expect("/exit")
        person.type("\x15and now?\r")
        person.expect("tok/s.*\r\n>>> ")
        person.type(f"/save {second}\r")
        person.expect("saved to")
        person.type("/exit\r")
        assert person.child.wait(timeout=60) == 0
    assert saved(second)[:3] == saved(first) and saved(second)[3] == "user: and now?"
    with terminal(["chat", str(good), *SMALL], alone) as person:
        person.expect(">>> ")
        person.type("hello\r")
        person.expect("tok/s.*\r\n>>> ")
        person.type("/resume\r")
        person.expect("2 questions taken up; the last was: and now?")


def test_nothing_is_left_where_that_is_asked(good: Path, alone: dict[str, str], tmp_path: Path) -> None:
    with terminal(["chat", str(good), *SMALL, "--no-history"], alone) as person:
        person.expect(">>> ")
        person.type(f"{LONG}\r")
        person.expect("tok/s.*\r\n>>> ")
        person.type("/exit\r")
        assert person.child.wait(timeout=60) == 0
    assert not (tmp_path / "state").exists() and not (tmp_path / "cache" / "states").exists()


def test_without_a_past_resume_is_refused_in_words(cli: Cli, good: Path, tmp_path: Path) -> None:
    done = cli("chat", shutil.copy(good, tmp_path / "new.gguf"), *SMALL, "--resume", stdin="hello\n")
    assert done.returncode == 2 and "there is no conversation with `new.gguf` to resume" in done.stderr


def test_a_saved_conversation_is_loaded(cli: Cli, good: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert cli("chat", good, *SMALL, "--system", "be brief", stdin=f"one\n/save {first}\n").returncode == 0
    done = cli("chat", good, *SMALL, stdin=f"/load {first}\ntwo\n/save {second}\n")
    assert done.returncode == 0, done.stderr
    assert saved(second)[:3] == saved(first) and saved(second)[3] == "user: two"


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '[{"role": "user"}]', '[{"role": "tool", "content": "x"}]', "[1]", "\xff", "[" * 99999]
)
def test_what_is_no_conversation_is_refused(cli: Cli, good: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content.encode("latin-1"))
    done = cli("chat", good, *SMALL, stdin=f"/load {path}\n")
    assert done.returncode == 2 and f"`{path}` is no conversation" in done.stderr and "Traceback" not in done.stderr


def test_set_changes_how_the_next_answer_is_picked(cli: Cli, good: Path) -> None:
    hot = ("--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0")
    same = cli("chat", good, *SMALL, "--temp", "0", stdin="hello\n").stdout
    assert cli("chat", good, *SMALL, *hot, stdin="hello\n").stdout != same
    assert cli("chat", good, *SMALL, *hot, stdin="/set temp 0\nhello\n").stdout == same
    told = cli("chat", good, *SMALL, stdin="/set parameter temperature 0.5\n/set num_predict 9\n/set\n").stdout
    assert "temp               0.5" in told and "max_tokens         9" in told


def test_settings_by_ollamas_names() -> None:
    plain = Sampling(seed=1)
    assert settings.changed(plain, None, "parameter temperature 0.5") == (Sampling(temp=0.5, seed=1), None)
    assert settings.changed(plain, None, "top-k=7") == (Sampling(top_k=7, seed=1), None)
    assert settings.changed(plain, 5, "seed -1") == (Sampling(), 5)
    assert settings.changed(plain, 5, "num_predict -1") == (plain, None)
    for wrong in ("grammar root", "temp", "temp 1 2", "logit_bias 3", "xtc_probability x"):
        with pytest.raises(UsageError):
            settings.changed(plain, None, wrong)
