"""A conversation goes on after a restart: its state lay on disk, bounded, and what is damaged or foreign is no harm."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import serving
import tinymoe
from console import needs_library
from serving import Served

import edgemoe

pytestmark = needs_library

CHAT = "/v1/chat/completions"
SETUP: dict[str, Any] = {"memory": "2GiB", "ctx": 1024, "threads": 1}
STORY = "tell me something about the thing in the other place " * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymoe.write(tmp_path_factory.mktemp("restart") / "alpha.gguf", "qwen3moe")


@contextmanager
def engine(model: Path, folder: Path, n_bytes: int = 1 << 30, **setup: Any) -> Iterator[tuple[edgemoe.Engine, Any]]:
    told: list[str] = []
    with edgemoe.load(model, **{**SETUP, **setup}) as found:
        found.keep_states(folder, n_bytes, told.append)
        yield found, told


def leave_one(model: Path, folder: Path, text: str = STORY) -> Path:
    """The file of a conversation that an engine has left."""
    before = set(folder.glob("*")) if folder.exists() else set()
    with engine(model, folder) as (found, told):
        found.eval_prompt(found.tokenize(text))
        row = found.row().tobytes()
    assert not told and row
    (path,) = set(folder.glob("*")) - before
    return path


def ask(server: Served, messages: list[Any]) -> tuple[str, int, int]:
    """Text, cached tokens, prompt tokens."""
    status, found = server.ask(CHAT, {"messages": messages, "max_tokens": 12})
    assert status == 200, found
    usage = found["usage"]
    return (
        found["choices"][0]["message"]["content"],
        usage["prompt_tokens_details"]["cached_tokens"],
        usage["prompt_tokens"],
    )


def test_the_server_takes_its_conversations_up_again(model: Path, tmp_path: Path) -> None:
    options = ("--threads", 1, "--ctx", 1024, "--memory", "400MiB")
    stories = [[{"role": "user", "content": f"{n} {STORY}"}] for n in range(3)]
    with serving.serve(tmp_path, model, *options) as server:
        texts = [ask(server, story)[0] for story in stories]
    assert len(list((tmp_path / "states").glob("*.state"))) == 3
    with serving.serve(tmp_path, model, *options) as server:
        for story, text in zip(stories, texts, strict=True):
            turns = [*story, {"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
            _, cached, n_prompt = ask(server, turns)
            assert cached >= 0.85 * n_prompt
    with serving.serve(tmp_path, model, *options, "--keep-states", 0) as server:
        assert ask(server, stories[0])[1] == 0
    other = tinymoe.write(tmp_path / "beta.gguf", "qwen3moe", seed=1)
    with serving.serve(tmp_path, other, *options) as server:  # the same tokens, another model
        assert ask(server, stories[0])[1] == 0


def test_logits_after_a_restart_are_those_of_before(model: Path, tmp_path: Path) -> None:
    with engine(model, tmp_path) as (found, _):
        tokens = found.tokenize(STORY)
        found.eval_prompt(tokens)
        found.eval([5])
        expected = found.row()
        found.rewind(len(tokens))
    with engine(model, tmp_path) as (again, told):
        again.eval_prompt([*tokens, 5])
        assert again.n_reused == len(tokens) and again.row() == expected and not told
    (path,) = tmp_path.glob("*")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("setup", [{"ctx": 512}, {"rope_scaling": "linear", "rope_scale": 2}, {"kv_type": "q8_0"}])
def test_a_state_is_of_one_setup(model: Path, tmp_path: Path, setup: dict[str, Any]) -> None:
    leave_one(model, tmp_path)
    with engine(model, tmp_path, **setup) as (found, told):
        found.eval_prompt(found.tokenize(STORY))
        assert found.n_reused == 0 and not told


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def flipped(raw: bytes) -> bytes:
    return raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:]


def lengthened(raw: bytes) -> bytes:
    return raw + b"x"


def of_other_tokens(raw: bytes) -> bytes:
    at = 8 + 32 + 16
    return raw[:at] + raw[at + 4 : at + 8] + raw[at : at + 4] + raw[at + 8 :]


@pytest.mark.parametrize("damage", [cut, flipped, lengthened, of_other_tokens])
def test_a_damaged_file_is_told_and_computed_again(model: Path, tmp_path: Path, damage: Any) -> None:
    path = leave_one(model, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with engine(model, tmp_path) as (found, told):
        tokens = found.tokenize(STORY)
        if damage is of_other_tokens:
            tokens[0], tokens[1] = tokens[1], tokens[0]
        found.eval_prompt(tokens)
        assert found.n_reused == 0
        assert len(told) == 1 and str(path) in told[0] and "damaged" in told[0]
        row = found.row()
    with edgemoe.load(model, **SETUP) as fresh:
        fresh.eval_prompt(tokens)
        assert fresh.row() == row


@pytest.mark.parametrize("content", [b"", b"EMOEseq2", b"#!/bin/sh\n" * 100, b"EMOEseq2" + b"\xff" * 40 + b"x" * 999])
def test_a_foreign_file_is_told_and_left_alone(model: Path, tmp_path: Path, content: bytes) -> None:
    path = leave_one(model, tmp_path)
    path.write_bytes(content)
    with engine(model, tmp_path) as (found, told):
        found.eval_prompt(found.tokenize("something else"))
        assert len(told) == 1 and str(path) in told[0]
    assert path.read_bytes() == content


def test_the_folder_stays_inside_its_bound_and_the_oldest_go(model: Path, tmp_path: Path) -> None:
    paths = [leave_one(model, tmp_path, f"{n} {STORY}") for n in range(3)]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (1_000_000_000 - age, 1_000_000_000 - age))
    n_bytes = int(2.5 * paths[0].stat().st_size)
    with engine(model, tmp_path, n_bytes) as (found, _):
        found.eval_prompt(found.tokenize(f"another {STORY}"))
    left = set(tmp_path.glob("*"))
    assert len(left) == 2 and paths[2] in left  # the newest of the old ones, and the new one
    assert sum(path.stat().st_size for path in left) <= n_bytes
    with engine(model, tmp_path, 1000) as (found, told):  # one that is larger than the bound is not kept
        found.eval_prompt(found.tokenize(f"a fourth {STORY}"))
    assert set(tmp_path.glob("*")) == left and not told


def test_a_longer_conversation_stands_for_its_beginning(model: Path, tmp_path: Path) -> None:
    first = leave_one(model, tmp_path)
    with engine(model, tmp_path) as (found, _):
        found.eval_prompt([*found.tokenize(STORY), *found.tokenize("and more words")])
        assert found.n_reused > 100
    assert not first.exists() and len(list(tmp_path.glob("*"))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which nobody can write")
def test_a_folder_that_cannot_be_written_is_said_once_a_state(model: Path) -> None:
    with engine(model, Path("/proc/states")) as (found, told):
        found.eval_prompt(found.tokenize(STORY))
    assert len(told) == 1 and "is not kept" in told[0]


def test_what_memory_has_no_room_for_goes_to_the_disk(model: Path, tmp_path: Path) -> None:
    with engine(model, tmp_path) as (found, told):
        found.keep_prefixes(0)
        first = found.tokenize(STORY)
        found.eval_prompt(first)
        found.eval_prompt(found.tokenize("quite another thing " * 20))
        assert len(list(tmp_path.glob("*"))) == 1
        found.eval_prompt(first)
        assert found.n_reused == len(first) - 1 and not told
