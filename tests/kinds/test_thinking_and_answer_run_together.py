"""Thinking is told from the answer, whatever marks a model writes, and an earlier answer is never refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import scripted
from console import Cli, needs_library
from terminal import terminal

import edgemoe
from edgemoe.runtime.text.thinking import Piece, Thinking, parted, shown, thinking_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' and '<|channel|>' in m.content %}"
    "{{ raise_exception('an answer with channel marks') }}{% endif %}"
    "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>"
    "{% endfor %}<|start|>assistant"
)
MARKS = ["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>", "<|call|>"]
ANALYSIS = "<|channel|>analysis<|message|>Hm, a greeting.<|end|><|start|>assistant<|channel|>final<|message|>Hello."


def read(thinking: Thinking, text: str, step: int) -> list[Piece]:
    reader = thinking.reader()
    found: list[Piece] = []
    for i in range(0, len(text), step):
        found += reader.feed(text[i : i + step])
    found += reader.finish()
    joined: list[Piece] = []
    for piece in found:
        if joined and joined[-1].kind == piece.kind and not piece.name:
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text, joined[-1].name)
        else:
            joined.append(piece)
    return joined


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("template", "prompt", "text", "thought", "answer"),
    [
        ("<think> </think>", "", "<think>\nLet me see\n</think>\n\nParis", "Let me see", "Paris"),
        ("<think> </think>", "ai\n<think>\n", "Let me see\n</think>\n\nParis", "Let me see", "Paris"),
        ("<think> </think>", "ai\n<think></think>", "Paris", "", "Paris"),
        ("<think> </think>", "", "Paris < London", "", "Paris < London"),
        ("<think> </think>", "", "</think>Paris", "", "Paris"),
        ("<think> </think>", "<think>", "never done", "never done", ""),
        ("[THINK] [/THINK]", "", "[THINK]a[b]\n[/THINK]Paris", "a[b]", "Paris"),
        ("'<seed:think>'", "", "<seed:think>x</seed:think>Paris", "x", "Paris"),
        (CHANNELS, "", ANALYSIS, "Hm, a greeting.", "Hello."),
        (CHANNELS, "", "Hello without channels", "", "Hello without channels"),
        (CHANNELS, "", "<|channel|>final<|message|>a < b<|return|>", "", "a < b"),
        (CHANNELS, "", "<|channel|>final<|message|>Hello.<|end|><|start|>assist", "", "Hello."),
        ("no marks", "", "<think>x</think>y", "", "<think>x</think>y"),
    ],
)
def test_marks_are_found_wherever_the_text_is_cut(
    template: str, prompt: str, text: str, thought: str, answer: str, step: int
) -> None:
    pieces = read(thinking_of(template, prompt), text, step)
    assert "".join(piece.text for piece in pieces if piece.kind == "thinking") == thought
    assert "".join(piece.text for piece in pieces if piece.kind == "text") == answer


@pytest.mark.parametrize("step", [1, 5, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
        '<|constrain|>json<|message|>{"a": 1}<|call|>',
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.add<|channel|>commentary json"
        '<|message|>{"a": 1}',
    ],
)
def test_a_call_in_a_channel_is_a_call(text: str, step: int) -> None:
    assert read(thinking_of(CHANNELS), text, step) == [Piece("thinking", "Hm."), Piece("call", '{"a": 1}', "add")]


def test_a_call_in_a_channel_comes_while_it_is_written() -> None:
    text = '<|channel|>commentary to=functions.add<|message|>{"a": "b<c"'
    assert read(thinking_of(CHANNELS), text, 2) == [Piece("call", '{"a": "b<c"', "add")]
    reader = thinking_of(CHANNELS).reader()
    assert [*reader.feed(text)] == [Piece("call", '{"a": "b<c"', "add")]


def test_people_see_thinking_between_marks_of_one_kind() -> None:
    pieces = read(thinking_of(CHANNELS), ANALYSIS, 4)
    assert "".join(shown(iter(pieces))) == "<think>\nHm, a greeting.\n</think>\n\nHello."
    assert parted(ANALYSIS, thinking_of(CHANNELS)) == ("Hm, a greeting.", "Hello.")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
def test_marks_that_are_control_tokens_are_not_lost(tmp_path: Path) -> None:
    says = ["Let me think", "</think>", "\n\nAnswer"]
    path = scripted.write(tmp_path / "m.gguf", says, control=["<think>", "</think>"])
    with edgemoe.load(path, memory="2GiB", ctx=256) as engine:
        assert "".join(engine.chat([{"role": "user", "content": "hi"}])) == "Let me think</think>\n\nAnswer"
    opened = CHATML + "{{ '<think>\\n' }}"
    path = scripted.write(tmp_path / "o.gguf", says, control=["<think>", "</think>"], template=opened)
    with edgemoe.load(path, memory="2GiB", ctx=256) as engine:
        pieces = list(engine.chat_pieces([{"role": "user", "content": "hi"}]))
        assert pieces == [Piece("thinking", "Let me think"), Piece("text", "Answer")]


@pytest.mark.usefixtures("cache")
def test_channels_do_not_reach_the_user_and_may_be_sent_back(tmp_path: Path) -> None:
    says = ["<|channel|>", "analysis", "<|message|>", "Hm.", "<|end|>", "<|start|>", "assistant to=", "nobody"]
    path = scripted.write(
        tmp_path / "m.gguf", says, after="t", end="<|return|>", control=MARKS, template=CHANNELS,
        keys={"tokenizer.ggml.eos_token_id": None},
    )  # fmt: skip
    asked: list[dict[str, object]] = [{"role": "user", "content": "hi"}]
    with edgemoe.load(path, memory="2GiB", ctx=256) as engine:
        first = "".join(engine.chat(asked, max_tokens=20))
        assert first.startswith("<think>\nHm.\n</think>") and "<|" not in first
        again: list[dict[str, object]] = [
            *asked,
            {"role": "assistant", "content": ANALYSIS},
            {"role": "user", "content": "again"},
        ]
        prompt = engine.detokenize(engine.chat_tokens(again), special=True)
        assert "final<|message|>Hello.<|end|>" in prompt and "a greeting" not in prompt


@needs_library
def test_a_terminal_shows_thinking_in_grey_and_a_pipe_between_marks(
    cli: Cli, environment: dict[str, str], tmp_path: Path
) -> None:
    says = ["Let me think", "</think>", "\n\nAnswer"]
    opened = CHATML + "{{ '<think>\n' }}"
    path = scripted.write(tmp_path / "m.gguf", says, control=["<think>", "</think>"], template=opened)
    assert cli("run", path, "-p", "hi").stdout == "<think>\nLet me think\n</think>\n\nAnswer\n"
    coloured = {key: value for key, value in environment.items() if key != "NO_COLOR"}
    for command, first in ((["run", str(path), "-p", "hi"], ""), (["chat", str(path)], "hi\r")):
        with terminal(command, coloured, kind="xterm") as person:
            if first:
                person.expect(">>> ")
                person.type(first)
            assert "\x1b[2mLet me think\x1b[0m\r\n\r\nAnswer" in person.expect("Answer")
