"""Metadata that is other than the file says: stock's logits with llama.cpp's own overrides, and refusals in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from exact_engines import stock

import edgemoe
from edgemoe.errors import EdgeMoEError, UnsupportedError, UsageError

SETUP = {"memory": "1GiB", "ctx": 512, "threads": 1, "n_ubatch": 64}
CASES: dict[str, tuple[str, int | float | bool]] = {
    "int:1": ("qwen3moe.expert_used_count", 1),
    "float:1000": ("qwen3moe.rope.freq_base", 1000.0),
    "float:0.1": ("qwen3moe.attention.layer_norm_rms_epsilon", 0.1),
}


@pytest.mark.parametrize("value", CASES)
def test_overrides_equal_stocks(tiny: Callable[..., Path], tokens: list[int], value: str) -> None:
    path, steps = tiny("qwen3moe"), [tokens[:150], *([t] for t in tokens[150:155])]
    key, _ = CASES[value]
    rows = []
    with edgemoe.load(path, **SETUP, override_kv=[f"{key}={value}"]) as engine:  # type: ignore[arg-type]
        for step in steps:
            engine.eval(step)
            rows.append(engine.row().tobytes())
        if "expert" in key:
            assert engine.model.info.n_expert_used == 1
    assert rows == stock(path, steps, overrides=[CASES[value]])
    assert rows != stock(path, steps)


def test_the_tokenizer_heeds_them(tiny: Callable[..., Path]) -> None:
    path = tiny("qwen3moe")
    found = []
    for value in ("true", "false"):
        override = [f"tokenizer.ggml.add_bos_token=bool:{value}", "tokenizer.ggml.bos_token_id=int:5"]
        with edgemoe.load(path, **SETUP, override_kv=override) as engine:  # type: ignore[arg-type]
            found.append(engine.tokenize("the thing"))
    assert found[0] == [5, *found[1]]


def test_states_and_notes_are_of_one_set_of_overrides(tiny: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny("qwen3moe")
    told: list[str] = []
    override = ["qwen3moe.rope.freq_base=float:1000"]
    with edgemoe.open_model(path) as plain, edgemoe.open_model(path, override) as other:
        assert plain.info.identity != other.info.identity
        with pytest.raises(UsageError, match="opened with other metadata"):
            edgemoe.plan(plain, memory="1GiB", override_kv=override)
    for said in ([], override, override):
        with edgemoe.load(path, **SETUP, override_kv=said) as engine:  # type: ignore[arg-type]
            engine.keep_states(tmp_path, 1 << 30, told.append)
            engine.eval_prompt(list(range(100)))
            told.append(str(engine.n_reused))
    assert told == ["0", "0", "99"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("qwen3moe.expert_count=int:4", "laid out"),
        ("qwen3moe.embedding_length=int:4", "laid out"),
        ("qwen3moe.attention.head_count=int:4", "laid out"),
        ("general.architecture=str:llama", "laid out"),
        ("split.count=int:2", "laid out"),
        ("qwen3moe.expert_used_count=int:10000", "cannot use 10000 of"),
        ("qwen3moe.expert_used_count=int:0", "cannot use 0 of"),
        ("qwen3moe.rope.freq_base=int:4", "is of type float"),
        ("qwen3moe.context_length=float:4", "is of type int"),
        ("qwen3moe.context_length=int:4x", "`4x` is no int"),
        ("qwen3moe.context_length=int:-1", "`-1` is no int"),
        ("qwen3moe.context_length=int:99999999999", "is no int"),
        ("qwen3moe.rope.freq_base=float:nan", "`nan` is no float"),
        ("tokenizer.ggml.add_bos_token=bool:yes", "`yes` is no bool"),
        ("tokenizer.ggml.tokens=str:a", "is of type array"),
        ("a.b=double:1", "no type of metadata"),
        ("a.b", "overrides nothing"),
        ("=int:1", "overrides nothing"),
        ("a.b=int", "overrides nothing"),
        ("a.b=str:" + "x" * 128, "too long"),
    ],
)
def test_what_cannot_be_overridden_is_said(tiny: Callable[..., Path], override: str, words: str) -> None:
    with pytest.raises(EdgeMoEError, match=words) as error:
        edgemoe.open_model(tiny("qwen3moe"), [override])
    assert isinstance(error.value, UnsupportedError if words == "laid out" else UsageError)
