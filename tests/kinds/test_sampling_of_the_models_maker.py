"""Where nobody says how tokens are picked, the model's file does; where it says nothing, llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_edit
import pytest
import serving
import tinymoe
from console import Cli, needs_library
from gguf_edit import F32, STRING, U32

import edgemoe
from edgemoe import Sampling

pytestmark = needs_library

OWN = {"temp": (F32, 1.5), "top_k": (U32, 20), "top_p": (F32, 0.9), "penalty_repeat": (F32, 1.25)}
QUESTION = [{"role": "user", "content": "tell me something"}]


def written(path: Path, **keys: tuple[int, object]) -> Path:
    parts = gguf_edit.take_apart(tinymoe.write(path, "qwen3moe"))
    for name, (kind, value) in keys.items():
        parts.set(f"general.sampling.{name}", kind, value)
    return parts.write(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("maker") / "own.gguf", **OWN)


def test_what_the_file_says_goes_first_and_llama_cpps_values_fill_the_rest(model: Path) -> None:
    with edgemoe.open_model(model) as opened:
        recommended = opened.recommended
    assert recommended.given == ("temp", "top_p", "repeat_penalty", "top_k")
    chosen = recommended.but()
    assert (chosen.temp, chosen.top_k, chosen.top_p, chosen.repeat_penalty) == (1.5, 20, 0.9, 1.25)
    assert (chosen.min_p, chosen.repeat_last_n, chosen.mirostat) == (0.05, 64, 0)
    assert recommended.but(temp=0.0, seed=7) == Sampling(
        temp=0.0, top_k=20, top_p=0.9, min_p=0.05, repeat_penalty=1.25, seed=7
    )


def test_a_file_that_says_nothing_has_llama_cpps_values_and_a_fixed_seed(tmp_path: Path) -> None:
    with edgemoe.open_model(written(tmp_path / "plain.gguf")) as opened:
        assert opened.recommended.given == ()
        first, again = opened.recommended.but(), opened.recommended.but()
    assert (first.temp, first.top_k, first.top_p, first.min_p) == (0.8, 40, 0.95, 0.05)
    assert first.seed is not None and first.params().seed == again.params().seed


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("temp", F32, float("nan")), ("temp", F32, -1.0), ("temp", STRING, "hot"), ("top_p", F32, 0.0),
        ("top_p", F32, 3.0), ("min_p", F32, float("inf")), ("top_k", U32, 2**32 - 1), ("mirostat", U32, 3),
        ("penalty_repeat", F32, 0.0), ("sequence", STRING, "top_k;" * 100),
    ],
)  # fmt: skip
def test_a_value_without_sense_is_as_if_it_was_not_there(tmp_path: Path, name: str, kind: int, value: object) -> None:
    with edgemoe.open_model(written(tmp_path / "odd.gguf", **{name: (kind, value)})) as opened:
        assert opened.recommended.given == ()
        assert opened.recommended.but().temp == 0.8


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[edgemoe.Engine]:
    path = written(tmp_path_factory.mktemp("order") / "order.gguf", sequence=(STRING, "top-k;temp"))
    with edgemoe.load(path, memory="2GiB", ctx=256, threads=1) as found:
        yield found


def test_samplers_act_in_the_order_of_the_file_and_no_others(engine: edgemoe.Engine) -> None:
    prompt = engine.tokenize("some words")

    def said(**fields: Any) -> list[int]:
        sampling = engine.model.recommended.but(**fields)
        return [step.token for step in engine.steps(prompt, max_tokens=12, sampling=sampling, anew=True)]

    likeliest = said(temp=0)
    hot = {"temp": 50.0, "seed": 3}
    assert said(**hot, top_k=1) == likeliest
    # top_p is no part of this file's order; where it is one, it leaves the likeliest token alone.
    assert said(**hot, top_k=0, top_p=1e-4, min_p=0.0) != likeliest
    assert said(**hot, top_k=0, top_p=1e-4, min_p=0.0, sequence="nucleus;temperature") == likeliest
    assert said(**hot, top_k=1, sequence="temperature;no_such_sampler") != likeliest
    # The temperature before top_p lets more tokens through than behind it.
    flat = {"temp": 1e6, "seed": 3, "top_k": 0, "top_p": 0.01, "min_p": 0.0}
    assert said(**flat, sequence="temperature;top_p") != said(**flat, sequence="top_p;temperature")


def test_commands_and_server_pick_as_the_file_says(cli: Cli, model: Path, tmp_path: Path) -> None:
    common = ("--threads", "1", "--ctx", "256", "--memory", "300MiB", "-n", "12")
    named = ("--temp", "1.5", "--top-k", "20", "--top-p", "0.9", "--repeat-penalty", "1.25")
    ask = ("run", str(model), "-p", "tell me something", *common)
    assert cli(*ask).stdout == cli(*ask, *named, "--seed", "1234").stdout
    assert cli(*ask).stdout != cli(*ask, "--temp", "0").stdout
    shown = " ".join(cli("inspect", str(model)).stdout.split())
    assert "temp 1.5, top_p 0.9, repeat_penalty 1.25, top_k 20 (the model's); min_p 0.05 (llama.cpp's)" in shown
    told = json.loads(cli("inspect", str(model), "--json").stdout)["sampling"]
    assert told == {"temp": 1.5, "top_p": 0.9, "repeat_penalty": 1.25, "top_k": 20}
    with serving.serve(tmp_path, model, "--threads", 1, "--ctx", 256, "--memory", "300MiB", "--top-k", 5) as server:
        params = server.ask("/props")[1]["default_generation_settings"]["params"]
        assert (params["temperature"], params["top_k"], params["repeat_penalty"]) == (1.5, 5, 1.25)

        def said(**fields: object) -> str:
            body = {"messages": QUESTION, "max_tokens": 12, "cache_prompt": False, **fields}
            return str(server.ask("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"])

        everything = {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "repeat_penalty": 1.25, "seed": 1234}
        assert said() == said() == said(**everything)
        assert said() != said(temperature=0)
