"""A picture in a conversation: the same whatever way it comes in, kept like text, never taken for another one."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import seeing
import tinyvision
from bounded import limited
from console import Cli, needs_library
from serving import Served, serve

import edgemoe
from edgemoe.errors import BudgetError, UnsupportedError, UsageError

pytestmark = needs_library

CAT, DOG = tinyvision.png(112, 80), tinyvision.png(112, 80, seed=1)
ASK, N_ANSWER = "What is on the picture?", 12
SETUP: dict[str, Any] = {"memory": "2GiB", "ctx": 1024, "threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its encoder beside it."""
    return seeing.model(tmp_path_factory.mktemp("pictures"), "qwen3vl")[0]


def question(picture: bytes, text: str = ASK) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}


def answer(engine: edgemoe.Engine, messages: list[dict[str, Any]]) -> str:
    return "".join(engine.chat(messages, max_tokens=N_ANSWER))


@pytest.fixture(scope="module")
def answers(model: Path) -> list[str]:
    """To the question about each picture, each by an engine of its own."""
    found = []
    for picture in (CAT, DOG):
        with edgemoe.load(model, mmproj="auto", **SETUP) as engine:
            found.append(answer(engine, [question(picture)]))
    return found


def test_a_second_turn_goes_on_behind_the_picture_and_another_picture_does_not(model: Path, answers: list[str]) -> None:
    assert answers[0] != answers[1]
    with edgemoe.load(model, mmproj="auto", **SETUP) as engine:
        assert answer(engine, [question(CAT)]) == answers[0]
        n_first = engine.n_past
        turns = [question(CAT), {"role": "assistant", "content": answers[0]}, {"role": "user", "content": "And now?"}]
        second = answer(engine, turns)
        assert n_first - N_ANSWER <= engine.n_reused <= n_first
        assert answer(engine, [question(DOG)]) == answers[1]
        assert engine.n_reused < 30  # what comes before the picture
        assert answer(engine, turns) == second
    with edgemoe.load(model, mmproj="auto", **SETUP) as engine:
        assert answer(engine, turns) == second


def test_conversations_with_pictures_take_turns_and_outlive_the_engine(model: Path, tmp_path: Path) -> None:
    told: list[str] = []
    first, second = [question(CAT)], [question(DOG)]
    with edgemoe.load(model, mmproj="auto", **SETUP) as engine:
        engine.keep_states(tmp_path, 1 << 30, told.append)
        engine.keep_prefixes(32 << 20)
        before = answer(engine, first), answer(engine, second)
        n_prompt = len(engine.chat_tokens(first))
        assert (answer(engine, first), engine.n_reused) == (before[0], n_prompt - 1)
    with edgemoe.load(model, mmproj="auto", **SETUP) as engine:
        engine.keep_states(tmp_path, 1 << 30, told.append)
        assert (answer(engine, second), engine.n_reused) == (before[1], n_prompt - 1)
    assert not told


def test_drafts_change_nothing(model: Path, answers: list[str]) -> None:
    with edgemoe.load(model, mmproj="auto", draft=3, **SETUP) as engine:
        assert answer(engine, [question(CAT)]) == answers[0]
        assert answer(engine, [question(CAT)]) == answers[0]


def test_the_plan_names_the_encoder_and_a_budget_without_room_for_it_says_so(model: Path) -> None:
    without = edgemoe.plan(model, measure=False, **SETUP)
    found = edgemoe.plan(model, measure=False, mmproj="auto", **SETUP)
    assert without.picture_bytes == 0 < found.picture_bytes
    assert any("while a picture is encoded" in line for line in found.lines())
    assert found.smallest_bytes > without.smallest_bytes + (30 << 20)
    with pytest.raises(BudgetError) as refused:
        edgemoe.plan(model, measure=False, **{**SETUP, "mmproj": "auto", "memory": found.smallest_bytes - (20 << 20)})
    assert "--mmproj off" in refused.value.hint


def test_what_cannot_be_seen_is_one_sentence(model: Path, answers: list[str]) -> None:
    def refusal(kind: type[edgemoe.EdgeMoEError], content: Any) -> str:
        with pytest.raises(kind) as refused:
            answer(engine, [{"role": "user", "content": content}])
        return f"{refused.value.message}; {refused.value.hint}"

    with edgemoe.load(model, mmproj="auto", **SETUP) as engine:
        webp = b"RIFF\0\0\0\0WEBPVP8 "
        assert "WebP" in refusal(UsageError, [{"type": "image", "image": webp}])
        url = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
        assert "not fetched" in refusal(UsageError, [url])
        assert "base64" in refusal(UsageError, [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}])
        assert "damaged" in refusal(UsageError, [{"type": "image_url", "image_url": "data:image/png;base64,!!"}])
        assert "no part of a message" in refusal(UsageError, [{"type": "video"}])
        assert "1,024 tokens" in refusal(UsageError, [{"type": "image", "image": tinyvision.png(1200, 1200)}])
        assert "larger `--memory`" in refusal(BudgetError, [{"type": "image", "image": tinyvision.png(8000, 8000)}])
        assert answer(engine, [question(CAT)]) == answers[0]
    with edgemoe.load(model, **SETUP) as engine:
        assert "mmproj" in refusal(UnsupportedError, question(CAT)["content"])
    with pytest.raises(UsageError, match="one answer at a time"):
        edgemoe.Setup(mmproj="mmproj.gguf", parallel=2)


# ---------------------------------------------------------------- the server


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("cache"), model, "--memory", "400MiB", "--ctx", 1024, "--threads", 1) as server:
        yield server


def url_of(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def test_a_picture_is_read_in_the_words_of_each_protocol(served: Served, answers: list[str]) -> None:
    said = {"max_tokens": N_ANSWER, "temperature": 0, "seed": 1}
    text = {"type": "text", "text": ASK}
    openai = [{"type": "image_url", "image_url": {"url": url_of(CAT), "detail": "high"}}, text]
    chat = {"messages": [{"role": "user", "content": openai}], **said}
    status, found = served.ask("/v1/chat/completions", chat)
    assert (status, found["choices"][0]["message"]["content"]) == (200, answers[0])

    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(DOG).decode()}
    blocks = [{"type": "image", "source": source}, text]
    status, found = served.ask("/v1/messages", {"messages": [{"role": "user", "content": blocks}], **said})
    assert (status, found["content"][0]["text"]) == (200, answers[1])

    images = [base64.b64encode(CAT).decode()]
    asked: dict[str, Any] = {"role": "user", "content": ASK, "images": images}
    options = {"temperature": 0, "num_predict": N_ANSWER}
    status, found = served.ask("/api/chat", {"messages": [asked], "stream": False, "options": options})
    assert (status, found["message"]["content"]) == (200, answers[0])
    asked = {"prompt": ASK, "images": images, "stream": False, "options": options}
    status, found = served.ask("/api/generate", asked)
    assert (status, found["response"]) == (200, answers[0])

    items = [{"type": "input_image", "image_url": url_of(DOG)}, {"type": "input_text", "text": ASK}]
    wanted = {"input": [{"role": "user", "content": items}], "max_output_tokens": N_ANSWER, "temperature": 0}
    status, found = served.ask("/v1/responses", wanted)
    assert (status, found["output"][-1]["content"][0]["text"]) == (200, answers[1])

    assert served.ask("/api/show", {"model": "qwen3vl"})[1]["capabilities"][-1] == "vision"
    assert served.ask("/props")[1]["modalities"]["vision"] is True


def test_what_the_server_cannot_see_is_the_clients_mistake(served: Served) -> None:
    def refused(content: list[dict[str, Any]], role: str = "user") -> str:
        status, found = served.ask("/v1/chat/completions", {"messages": [{"role": role, "content": content}]})
        assert status == 400, found
        return str(found["error"]["message"])

    assert "not fetched" in refused([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/cat.png"}}])
    assert "not fetched" in refused([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])
    assert "no picture" in refused([{"type": "image_url", "image_url": {"url": url_of(b"nothing")}}])
    assert "`image_url`" in refused([{"type": "image_url"}])
    assert "in this role" in refused([{"type": "image_url", "image_url": {"url": url_of(CAT)}}], role="system")
    assert "`input_audio`" in refused([{"type": "input_audio"}])


# ---------------------------------------------------------------- the console


def test_pictures_at_the_console(model: Path, cli: Cli, tmp_path: Path, answers: list[str]) -> None:
    cat = tmp_path / "a cat.png"
    cat.write_bytes(CAT)
    common = ("--memory", "400MiB", "--ctx", "1024", "-t", "1", "-n", str(N_ANSWER), "--temp", "0")
    done = cli("run", model, "--image", cat, "-p", ASK, *common)
    assert (done.returncode, done.stdout.rstrip("\n")) == (0, answers[0].rstrip("\n")), done.stderr
    done = cli("chat", model, *common, stdin=f"/image {cat}\n{ASK}\n")
    assert done.stdout.rstrip("\n") == answers[0].rstrip("\n"), done.stderr
    saved = tmp_path / "said.json"
    done = cli("chat", model, "--image", cat, *common, stdin=f"{ASK}\n/save {saved}\n/load {saved}\n")
    assert done.returncode == 0 and json.loads(saved.read_bytes())[0]["content"][0]["image"] == str(cat)
    assert "[a cat.png] What is on" in done.stderr
    for arguments, words in (
        (("run", model, "--image", tmp_path / "no.png", "-p", "x"), "there is no picture"),
        (
            ("run", model, "--image", model, "-p", "x"),
            "larger than" if model.stat().st_size > 64 << 20 else "no picture",
        ),
        (("run", model, "--image", cat, "-p", "x", "--mmproj", "off"), "no picture encoder here"),
        (("run", model, "--image", cat, "-p", "x", "--mmproj", tmp_path / "no.gguf"), "there is no picture encoder"),
        (("run", model, "--image", cat, "-p", "x", "--mmproj", model), "is no picture encoder"),
        (("run", model, "--image", cat, "-p", "x", "--raw"), "no chat template"),
        (("run", "--image", cat, "-p", "x"), "no picture encoder here"),
    ):
        done = cli(*arguments)
        assert (done.returncode != 0, done.stdout) == (True, "")
        assert words in done.stderr and "Traceback" not in done.stderr, done.stderr


# ---------------------------------------------------------------- memory

CHILD = """
import json, sys
import edgemoe
path, memory, picture = sys.argv[1:]
with edgemoe.load(path, memory=int(memory), ctx=2048, threads=1, mmproj="auto") as engine:
    for _ in range(2):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
        text = "".join(engine.chat([{"role": "user", "content": content}], max_tokens=20))
        engine.reset()
    stats = engine.stats()
    print(json.dumps({"peak": stats.peak_bytes, "rss": stats.rss_bytes, "picture": engine.plan.picture_bytes}))
"""


@pytest.mark.slow
def test_a_picture_stays_inside_the_smallest_budget_under_the_kernels_limit(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """An encoder of 45 MB and a photograph's 0.8 million pixels, at the smallest budget."""
    path, mmproj = seeing.model(tmp_path, "qwen3vl", ff=2000, layers=40)
    assert mmproj.stat().st_size > 40e6
    picture = tmp_path / "cat.png"
    picture.write_bytes(tinyvision.png(1024, 768))
    plan = [sys.executable, "-m", "edgemoe", "plan", str(path), "--ctx", "2048", "-t", "1", "--json"]
    planned = json.loads(subprocess.run(plan, capture_output=True, text=True, env=environment, check=True).stdout)
    budget = planned["smallest_bytes"] + (6 << 20)
    found = limited(budget, CHILD, path, budget, picture, env=environment)
    assert found["peak"] <= budget
    assert found["rss"] < budget - found["picture"] // 2  # given back
