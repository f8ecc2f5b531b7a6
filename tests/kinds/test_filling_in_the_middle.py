"""The middle of a text is filled in with the model's own marks, by every way that clients ask; else it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_edit
import pytest
import serving
import tinymoe
from console import needs_library
from gguf_edit import U32
from serving import Served

import edgemoe
from edgemoe.serve.infill import Middle, prompt_of

pytestmark = needs_library

MARKS = {"fim_pre": 260, "fim_suf": 261, "fim_mid": 262, "fim_rep": 263, "fim_sep": 264}
PREFIX, SUFFIX = "def add(a, b):\n    ", "\n    return c\n"


def written(path: Path, *, without: tuple[str, ...] = ()) -> Path:
    parts = gguf_edit.take_apart(tinymoe.write(path, "qwen3moe"))
    for name, token in MARKS.items():
        if name not in without:
            parts.set(f"tokenizer.ggml.{name}_token_id", U32, token)
    return parts.write(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("fim") / "fim.gguf")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cache = tmp_path_factory.mktemp("cache")
    with serving.serve(cache, model, "--threads", 1, "--ctx", 256, "--memory", "300MiB") as found:
        yield found


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[edgemoe.Engine]:
    with edgemoe.load(model, memory="2GiB", ctx=256, threads=1) as found:
        yield found


def plain(engine: edgemoe.Engine, text: str) -> list[int]:
    return engine.tokens(text, add_special=False, parse_special=False)


def test_the_prompt_is_that_of_llama_cpps_server(engine: edgemoe.Engine) -> None:
    pre, suf, mid, rep, sep = MARKS.values()
    names = [rep, *plain(engine, "myproject\n"), sep, *plain(engine, "filename\n")]
    start = engine.tokens("", add_special=True, parse_special=False)
    asked = [*start, pre, *plain(engine, PREFIX), suf, *plain(engine, SUFFIX), mid]
    assert prompt_of(engine, Middle(PREFIX, SUFFIX), None) == [*names, *asked]
    found = prompt_of(engine, Middle(PREFIX, SUFFIX, [("a.py", "x = 1\n")], "c ="), 8)
    extra = [
        rep,
        *plain(engine, "myproject\n"),
        sep,
        *plain(engine, "a.py\nx = 1\n"),
        sep,
        *plain(engine, "filename\n"),
    ]
    assert found == [*extra, *start, pre, *plain(engine, PREFIX + "c ="), suf, *plain(engine, SUFFIX), mid]


def test_what_is_far_from_the_place_is_left_out(engine: edgemoe.Engine) -> None:
    middle = Middle("a" * 500 + "near", "near" + "z" * 500, [("other", "y" * 500)])
    found = prompt_of(engine, middle, 16)
    assert len(found) <= engine.n_ctx - 16
    text = engine.detokenize(found)
    assert text.count("near") == 2 and "a" * 100 in text and "z" * 30 in text


def test_every_way_to_ask_gives_the_same(server: Served, engine: edgemoe.Engine) -> None:
    prompt = prompt_of(engine, Middle(PREFIX, SUFFIX), 8)
    said = {"temperature": 0, "max_tokens": 8, "cache_prompt": False}
    status, found = server.ask("/v1/completions", {"prompt": prompt, **said})
    assert status == 200, found
    expected = found["choices"][0]["text"]
    assert expected

    def text(path: str, body: dict[str, Any]) -> Any:
        status, found = server.ask(path, body)
        assert status == 200, found
        return found

    asked = {"prompt": PREFIX, "suffix": SUFFIX, **said}
    assert text("/v1/completions", asked)["choices"][0]["text"] == expected
    assert text("/infill", {"input_prefix": PREFIX, "input_suffix": SUFFIX, **said})["content"] == expected
    options = {"temperature": 0, "num_predict": 8}
    ollama = {"prompt": PREFIX, "suffix": SUFFIX, "options": options, "stream": False}
    assert text("/api/generate", ollama)["response"] == expected
    pieces = server.stream("/v1/completions", {**asked, "stream": True})
    assert "".join(piece["choices"][0]["text"] for piece in pieces if piece["choices"]) == expected


@pytest.mark.parametrize("prompt", [["one", "two"], [1, 2, 3]])
def test_a_suffix_needs_one_text(server: Served, prompt: Any) -> None:
    status, found = server.ask("/v1/completions", {"prompt": prompt, "suffix": "x"})
    assert status == 400 and found["error"]["param"] == "suffix"


def test_a_model_without_marks_refuses(tmp_path: Path) -> None:
    model = written(tmp_path / "m.gguf", without=("fim_mid",))
    with serving.serve(tmp_path, model, "--threads", 1, "--ctx", 256, "--memory", "300MiB") as server:
        for path, body in (
            ("/v1/completions", {"prompt": PREFIX, "suffix": SUFFIX}),
            ("/infill", {"input_prefix": PREFIX, "input_suffix": SUFFIX}),
            ("/api/generate", {"prompt": PREFIX, "suffix": SUFFIX, "stream": False}),
        ):
            status, found = server.ask(path, body)
            assert status == 400 and "was not trained to fill in" in str(found)
