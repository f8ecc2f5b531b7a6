"""A short request between two turns of a conversation does not throw away what was computed for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
import tinymoe
from console import needs_library
from serving import Served

import edgemoe
from edgemoe import _native
from edgemoe.errors import NativeError, UsageError
from edgemoe.places import builtin_path

pytestmark = needs_library

CHAT = "/v1/chat/completions"
STORY = [{"role": "user", "content": "tell me something about the thing in the other place " * 8}]
TITLE = [{"role": "user", "content": "a title, please"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymoe.write(tmp_path_factory.mktemp("title") / "alpha.gguf", "qwen3moe")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cache = tmp_path_factory.mktemp("cache")
    with serving.serve(cache, model, "--threads", 1, "--ctx", 2048, "--memory", "512MiB") as found:
        yield found


def ask(server: Served, messages: list[Any], **fields: Any) -> tuple[str, int, int]:
    """Text, cached tokens, prompt tokens."""
    status, found = server.ask(CHAT, {"messages": messages, "max_tokens": 12, **fields})
    assert status == 200, found
    usage = found["usage"]
    text = found["choices"][0]["message"]["content"]
    return text, usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def test_a_title_between_two_turns(server: Served) -> None:
    story: list[Any] = [*STORY]
    text, _, _ = ask(server, story)
    n_turn = 12 + 40  # the answer, which a random model's text need not give again, and the question in its marks
    for turn in range(4):
        story += [{"role": "assistant", "content": text}, {"role": "user", "content": f"and then {turn}?"}]
        ask(server, [*TITLE, {"role": "assistant", "content": str(turn)}, *TITLE])
        text, cached, n_prompt = ask(server, story)
        assert cached >= 0.85 * n_prompt  # all but the new turn
        assert n_prompt - cached <= n_turn


def test_only_the_new_turn_is_computed_after_a_title() -> None:
    """Of a trained model, whose answers are read again as the tokens that they were written in."""
    path = builtin_path()
    if path is None:
        pytest.skip("this installation has no built-in model")
    story: list[Any] = [{"role": "user", "content": "Go on with this: " + "The sun rose over the quiet village. " * 60}]
    with edgemoe.load(path, memory="2GiB", ctx=2048, threads=1) as engine:  # the tests' process counts in it
        engine.keep_prefixes(24 << 20)

        def answered(messages: list[Any]) -> tuple[str, int]:
            text = "".join(engine.chat(messages, max_tokens=12))
            return text, len(engine.chat_tokens(messages))

        text, _ = answered(story)
        for turn in range(3):
            before = engine.n_past
            story += [{"role": "assistant", "content": text}, {"role": "user", "content": f"And then, {turn}?"}]
            answered([{"role": "user", "content": f"a title, please: {turn} " + "village " * 40}])
            text, n_prompt = answered(story)
            assert engine.n_reused == before
            assert engine.n_reused >= 0.95 * n_prompt


def test_the_answer_is_as_without_the_title(server: Served) -> None:
    first, _, _ = ask(server, STORY, cache_prompt=False)
    turns = [*STORY, {"role": "assistant", "content": first}, {"role": "user", "content": "more"}]
    undisturbed = ask(server, turns)
    ask(server, STORY, cache_prompt=False)
    ask(server, TITLE)
    ask(server, [*TITLE, *TITLE])
    text, cached, _ = ask(server, turns)
    assert text == undisturbed[0] and cached >= undisturbed[1]


def test_several_conversations_take_turns(server: Served) -> None:
    stories = [[{"role": "user", "content": f"{n} {STORY[0]['content']}"}] for n in range(5)]
    for story in stories:
        ask(server, story)
    for story in stories:
        assert ask(server, story)[1] > 200
    remembered = server.metrics()
    assert remembered["edgemoe_remembered_conversations"] >= 4
    assert 0 < remembered["edgemoe_remembered_bytes"] <= 0.06 * (512 << 20)


def test_what_is_remembered_stays_inside_its_share(model: Path, tmp_path: Path) -> None:
    with serving.serve(tmp_path, model, "--threads", 1, "--ctx", 2048, "--memory", "100MiB", "--remember", 1) as server:
        for n in range(12):
            ask(server, [{"role": "user", "content": f"{n} {STORY[0]['content']}"}])
        assert server.metrics()["edgemoe_remembered_bytes"] <= 1 << 20
        assert server.rss_bytes() <= 100 << 20
        assert server.ask("/api/budget", {"memory": "90MiB"})[0] == 200
        assert server.metrics()["edgemoe_remembered_bytes"] == 0
    forgetful = ("--remember", 0, "--keep-states", 0)
    with serving.serve(tmp_path, model, "--threads", 1, "--ctx", 2048, "--memory", "100MiB", *forgetful) as server:
        ask(server, STORY)
        ask(server, TITLE)
        assert ask(server, STORY)[1] < 10


# ---------------------------------------------------------------- states, in the engine


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[edgemoe.Engine]:
    with edgemoe.load(model, memory="2GiB", ctx=512, threads=1) as found:
        yield found


def test_a_state_taken_up_again_gives_the_same_logits(engine: edgemoe.Engine) -> None:
    tokens = engine.tokenize("tell me something about the thing in the other place " * 4)
    engine.reset()
    engine.eval(tokens)
    backend = engine._sequence.backend
    state = backend.state(backend.state_bytes())
    engine.eval([5])
    expected = engine.row()
    engine.reset()
    engine.eval(engine.tokenize("something else, that is shorter"))
    backend.set_state(state)
    assert backend.n_past == len(tokens)
    backend.decode([5], want_all=False)
    assert backend.row(0) == expected
    backend.rewind(0)
    engine._sequence._tokens = engine._sequence._tokens[:0]


def test_a_state_that_is_none_is_refused(engine: edgemoe.Engine) -> None:
    engine.reset()
    backend = engine._sequence.backend
    assert backend.state_bytes() == 0
    engine.eval(engine.tokenize("some words to remember"))
    state, n_past = backend.state(backend.state_bytes()), backend.n_past
    changed = bytearray(state)
    changed[-1] ^= 1
    for wrong in (bytearray(b"x"), bytearray(64), state[:-1], state + b"x", changed):
        with pytest.raises((UsageError, NativeError)):
            backend.set_state(wrong)
        assert backend.n_past == n_past
    backend.set_state(state)
    assert backend.n_past == n_past
    with pytest.raises((UsageError, NativeError)):
        _native.engine_state(engine._sequence.backend.engine, 10)


@pytest.mark.parametrize(("arch", "cuts"), [("qwen3moe", True), ("gpt-oss", False), ("lfm2moe", False)])
def test_a_state_is_cut_only_where_it_can_be(tmp_path: Path, arch: str, cuts: bool) -> None:
    """Of a sliding window a state has what the next token sees, of a recurrent model the last state."""
    path = tinymoe.write(tmp_path / "m.gguf", arch)
    with edgemoe.load(path, memory="2GiB", ctx=512, threads=1) as engine:
        backend = engine._sequence.backend
        assert backend.can_cut() is cuts
        tokens = engine.tokenize("tell me something about the thing in the other place " * 4)[:150]
        engine.eval(tokens[:100])
        engine.eval([7])
        expected = engine.row()
        engine.reset()
        engine.eval(tokens[:100])
        engine.eval(tokens[100:])
        state = backend.state(backend.state_bytes())
        engine.reset()
        backend.set_state(state)
        if cuts:
            backend.rewind(100)
            backend.decode([7], want_all=False)
            assert backend.row(0) == expected
        else:
            with pytest.raises(edgemoe.UnsupportedError):
                backend.rewind(100)
            assert backend.n_past == 0
        backend.rewind(0)


@pytest.mark.parametrize("arch", ["gpt-oss", "lfm2moe"])
def test_what_cannot_be_cut_goes_on_from_the_end_of_a_prompt(tmp_path: Path, arch: str) -> None:
    """The answer is told otherwise in the next prompt, as thinking is, and a title was asked for meanwhile."""
    path = tinymoe.write(tmp_path / "m.gguf", arch)
    with edgemoe.load(path, memory="2GiB", ctx=1024, threads=1) as engine:
        engine.keep_prefixes(24 << 20)
        prompt = engine.tokenize("tell me something about the thing in the other place " * 10)
        longer = [*prompt, *engine.tokenize("another answer, and the next question", special=False)]
        list(engine.generate(prompt, max_tokens=8))
        list(engine.generate(engine.tokenize("a title, please, for what comes now " * 4), max_tokens=3))
        engine.logits(longer)
        assert engine.n_past == len(longer) and engine._sequence.n_kept == len(prompt)
        list(engine.generate(longer[:-3], max_tokens=3))  # no beginning but the prompt
        assert engine.n_reused == len(prompt)
