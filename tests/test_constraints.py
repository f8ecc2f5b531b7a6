"""Grammars, biases, penalties and log-probabilities, on a model with random weights: it obeys or it does not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import tinymoe

import edgemoe
from edgemoe import Engine, Sampling, UsageError
from edgemoe.runtime.text.grammar import json_grammar, schema_grammar

WILD: dict[str, Any] = {"temp": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMOE_CACHE", str(tmp_path_factory.mktemp("cache")))
        path = tinymoe.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "qwen3moe", n_layer=2, n_expert=8)
        with edgemoe.load(path, memory="1GiB", ctx=512, threads=1) as found:
            yield found


def answer(engine: Engine, n: int = 100, **sampling: Any) -> str:
    return "".join(engine.generate("the other thing", max_tokens=n, sampling=Sampling(**sampling)))


SCHEMAS: list[Any] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 9},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "b\\c", 'q"t']}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {"properties": {"a": {"type": ["integer", "null"]}, "b": {"const": {"x": [1, "é\n"]}}}, "required": ["b"]},
    {
        "$defs": {
            "n": {
                "properties": {"v": {"type": "boolean"}, "k": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                "required": ["v", "k"],
            }
        },
        "$ref": "#/$defs/n",
    },
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "string", "format": "date"}], "items": False},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "required": ["id"]},
    {"allOf": [{"properties": {"x": {"type": "boolean"}}, "required": ["x"]}, {"properties": {"y": {"type": "null"}}}]},
    {"type": "integer", "minimum": 1},
    {"type": "number", "minimum": 0},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_every_finished_text_of_a_grammar_satisfies_its_schema(engine: Engine, schema: Any) -> None:
    validate = pytest.importorskip("jsonschema_rs").validate
    grammar, finished = schema_grammar(schema), 0
    for seed in range(4):
        text = answer(engine, grammar=grammar, seed=seed, **WILD)
        if engine.finish_reason == "stop":
            finished += 1
            validate(schema, json.loads(text))
    assert finished


def test_any_json_object(engine: Engine) -> None:
    texts = [answer(engine, grammar=json_grammar(), seed=seed, **WILD) for seed in range(3)]
    assert all(text.lstrip().startswith("{") for text in texts)


def test_a_grammar_holds_greedily_too_and_ends_the_answer(engine: Engine) -> None:
    assert answer(engine, grammar='root ::= "yes" | "no"') in ("yes", "no")
    assert engine.finish_reason == "stop"


def test_a_triggered_grammar_holds_from_the_trigger_on(engine: Engine) -> None:
    free = answer(engine, 60)
    at = free[7:9]  # something that the model is about to write
    end = free.index(at) + len(at)
    text = answer(engine, 60, grammar='root ::= "<!" [0-9]{3} "!>"', grammar_trigger=at)
    assert text[:end] == free[:end]
    assert len(text) == end + 7 and text[end : end + 2] == "<!" and text.endswith("!>")


def test_a_grammar_that_is_none_is_refused_before_anything_is_computed(engine: Engine) -> None:
    for bad in ("root ::= (", "start ::= [a]", "root ::= root", "root ::= missing", "root ::= " + "(" * 5000):
        with pytest.raises(UsageError, match="grammar"):
            engine.check([1], Sampling(grammar=bad))
    assert answer(engine, 4)


def test_a_grammar_that_allows_no_token_ends_the_answer(engine: Engine) -> None:
    # The vocabulary has bytes for every text: only one that needs no byte at all leads nowhere.
    assert answer(engine, 20, grammar='root ::= ""') == ""
    assert engine.finish_reason == "stop"


def test_a_grammar_that_doubles_with_every_token_ends_in_words(engine: Engine) -> None:
    doubling = 'root ::= "a" root "b" | "a" root "c" | "a"'
    with pytest.raises(UsageError, match="grammar grew"):
        answer(engine, 60, grammar=doubling, logit_bias=((ord("a"), 1e6),))
    assert answer(engine, 4)


def test_a_bias_forbids_and_forces(engine: Engine) -> None:
    first = next(engine.steps(engine.tokenize("the other thing"), max_tokens=1)).token
    steps = engine.steps(
        engine.tokenize("the other thing"), max_tokens=20, sampling=Sampling(logit_bias=((first, -math.inf),))
    )
    assert first not in [step.token for step in steps]
    assert answer(engine, 5, logit_bias=((ord("Q"), 1e6),)) == "QQQQQ"
    with pytest.raises(UsageError, match="vocabulary"):
        answer(engine, 5, logit_bias=((10**6, 1.0),))


def test_penalties_make_repetition_rarer(engine: Engine) -> None:
    plain = answer(engine, 100)
    varied = answer(engine, 100, presence_penalty=1000.0, repeat_last_n=500)
    assert len(set(varied)) > len(set(plain))
    assert answer(engine, 100, frequency_penalty=2.0) != plain


def test_logprobs_are_those_of_the_logits(engine: Engine) -> None:
    np = pytest.importorskip("numpy")
    prompt = engine.tokenize("the other thing")
    step = next(engine.steps(prompt, max_tokens=1, n_top=3))
    logits = engine.logits(prompt).astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    best = np.argsort(-expected)[:3]
    assert step.token == best[0] and [token for token, _ in step.top] == best.tolist()
    assert step.logprob == pytest.approx(expected[step.token], abs=1e-5)
    assert [value for _, value in step.top] == pytest.approx(expected[best].tolist(), abs=1e-5)


def test_reused_tokens_are_counted(engine: Engine) -> None:
    engine.reset()
    prompt = engine.tokenize("the other thing and more of it")
    list(engine.steps(prompt, max_tokens=2))
    assert engine.n_reused == 0
    list(engine.steps(prompt, max_tokens=2))
    assert engine.n_reused == len(prompt) - 1
