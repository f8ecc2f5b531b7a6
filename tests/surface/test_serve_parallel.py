"""`edgemoe serve --parallel N`: several clients are answered at once, each with what it gets alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import serving
import tinymoe
from atonce import together
from console import needs_library
from serving import Served

pytestmark = needs_library

SMALL = ("--threads", 1, "--ctx", 1024, "--memory", "512MiB")
CHAT = "/v1/chat/completions"
N = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("served")
    return (
        tinymoe.write(folder / "alpha.gguf", "qwen3moe"),
        tinymoe.write(folder / "beta.gguf", "qwen3moe", seed=1),
        tinymoe.write(folder / "gamma.gguf", "lfm2moe"),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def server(models: tuple[Path, ...], cache: Path) -> Iterator[Served]:
    with serving.serve(cache, models[0], models[1], *SMALL, "--parallel", N, "--queue", 2) as found:
        yield found


def asked(i: int, **fields: Any) -> dict[str, Any]:
    text = ("hello there", "what is the theme of the interior? " * 12, "another")[i % 3]
    messages = [{"role": "user", "content": text}]
    return {
        "model": "alpha",
        "messages": messages,
        "max_tokens": 60 + 20 * i,
        "seed": i,
        "cache_prompt": False,
        **fields,
    }


def said(server: Served, request: dict[str, Any]) -> Any:
    status, found = server.ask(CHAT, request)
    return found["choices"][0]["message"]["content"] if status == 200 else status


@pytest.fixture(scope="module")
def alone(models: tuple[Path, ...], cache: Path) -> list[Any]:
    """Of a server that answers one after the other."""
    with serving.serve(cache, models[0], *SMALL) as server:
        return [said(server, asked(i)) for i in range(N)]


def test_answers_at_once_are_what_they_are_alone(server: Served, alone: list[Any]) -> None:
    before = server.metrics()
    assert together([partial(said, server, asked(i)) for i in range(N)]) == alone
    assert all(isinstance(one, str) and len(one) > 20 for one in alone)
    after = server.metrics()
    told = 'edgemoe_tokens_total{kind="completion"}'
    assert after[told] - before[told] == sum(60 + 20 * i for i in range(N))


def test_a_second_client_does_not_wait_for_the_first(server: Served) -> None:
    first = server.stream(CHAT, asked(0, max_tokens=900, stream=True))
    next(first)
    second = list(server.stream(CHAT, asked(2, max_tokens=5, stream=True)))
    assert second[-1]["choices"][0]["finish_reason"] == "length"
    live = server.live()
    assert live["state"] == "busy" and live["running"] == 1 and len(live["answers"]) == N
    assert [one["running"] for one in live["answers"]].count(True) == 1
    slots = server.ask("/slots")[1]
    assert [slot["id"] for slot in slots] == list(range(N))
    assert [slot["is_processing"] for slot in slots].count(True) == 1
    assert server.ask("/props")[1]["total_slots"] == N
    assert server.metrics()["edgemoe_requests_running"] == 1
    first.close()
    server.until_idle()


def test_a_client_that_goes_away_ends_its_own_answer_only(server: Served, alone: list[Any]) -> None:
    def leave() -> None:
        stream = server.stream(CHAT, asked(1, max_tokens=900, stream=True))
        next(stream)
        next(stream)
        stream.close()

    found = together([partial(said, server, asked(0)), leave, partial(said, server, asked(2))])
    assert (found[0], found[2]) == (alone[0], alone[2])
    server.until_idle()
    assert said(server, asked(1)) == alone[1]


def test_the_queue_holds_what_is_beyond_and_refuses_the_rest(server: Served, alone: list[Any]) -> None:
    found = together([partial(said, server, asked(i % N)) for i in range(12)])
    answers = [(i, one) for i, one in enumerate(found) if one != 429]
    assert len(answers) >= N + 2
    assert all(one == alone[i % N] for i, one in answers)


def test_another_model_waits_until_all_answers_have_ended(server: Served, alone: list[Any]) -> None:
    jobs = [partial(said, server, asked(i)) for i in range(2)]
    found = together([*jobs, partial(said, server, asked(0, model="beta")), partial(said, server, asked(2))])
    assert [found[0], found[1], found[3]] == alone
    assert isinstance(found[2], str) and found[2] != alone[0]


def test_a_conversation_goes_on_on_any_seat(server: Served) -> None:
    turns = [{"role": "user", "content": "what is the theme of the interior? " * 6}]
    request = {"model": "alpha", "messages": turns, "max_tokens": 12}
    answer = server.ask(CHAT, request)[1]
    turns.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    turns.append({"role": "user", "content": "and then?"})
    other = server.stream(CHAT, asked(0, max_tokens=900, stream=True))  # takes the first seat that is free
    next(other), next(other)  # the second piece is computed: what was on the seat is set aside
    again = server.ask(CHAT, request)[1]
    other.close()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= answer["usage"]["prompt_tokens"] - 8
    server.until_idle()


def test_a_model_that_cannot_says_so_and_answers_one_after_the_other(models: tuple[Path, ...], cache: Path) -> None:
    with serving.serve(cache, models[2], *SMALL, "--parallel", N) as server:
        words = "`--parallel 3` is not for gamma, which answers one after the other: this model cannot answer several"
        assert any(words in line and "recurrent state" in line for line in server.talk)
        assert len(server.ask("/slots")[1]) == 1
        answers = together([partial(said, server, asked(i, model="gamma")) for i in range(2)])
        assert answers == [said(server, asked(i, model="gamma")) for i in range(2)]


def test_the_budget_changes_while_several_talk(server: Served, alone: list[Any]) -> None:
    def change() -> None:
        for memory in ("300MiB", "512MiB"):
            assert server.ask("/api/budget", {"memory": memory})[0] == 200

    found = together([*(partial(said, server, asked(i)) for i in range(N)), change])
    assert found[:N] == alone
