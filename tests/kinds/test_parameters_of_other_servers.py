"""What clients of other servers send: what is known works, what changes nothing passes, the rest is named."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
import tinymoe
from console import needs_library
from serving import Served

pytestmark = needs_library

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello there"}]
SMALL = ("--threads", 1, "--ctx", 512, "--memory", "512MiB")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymoe.write(tmp_path_factory.mktemp("model") / "alpha.gguf", "qwen3moe")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving.serve(tmp_path_factory.mktemp("cache"), model, *SMALL, "-v") as found:
        yield found


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": HELLO, "max_tokens": 6, "cache_prompt": False, **fields}


def text_of(server: Served, **fields: Any) -> str:
    status, answer = server.ask(CHAT, chat(**fields))
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


def test_any_name_is_the_one_model(server: Served) -> None:
    for name in ("gpt-4o", "alpha", "alpha:latest", "", None):
        status, answer = server.ask(CHAT, chat(model=name))
        assert status == 200 and answer["model"] == "alpha"
    assert server.ask("/v1/models/gamma")[0] == 404


def test_what_is_not_known_is_ignored_and_named(server: Served) -> None:
    plain = text_of(server)
    asked = chat(colour="blue", min_tokens=5, guided_regex="a+", response_format={"type": "text", "hue": 1})
    status, headers, body = server.exchange(CHAT, asked)
    assert status == 200 and json.loads(body)["choices"][0]["message"]["content"] == plain
    named = headers["X-EdgeMoE-Ignored"].split(", ")
    assert named == ["colour", "min_tokens", "guided_regex", "response_format.hue"]
    status, headers, _ = server.exchange(CHAT, {**asked, "stream": True})
    assert headers["X-EdgeMoE-Ignored"].split(", ") == named
    status, headers, _ = server.exchange(CHAT, chat(**{"ev\r\nil: x": 1, "ü": 2}))
    assert status == 200 and headers["X-EdgeMoE-Ignored"] == "?, ?"


def test_what_changes_nothing_passes(server: Served) -> None:
    neutral: dict[str, Any] = {
        "use_beam_search": False, "length_penalty": 1.0, "min_tokens": 0, "skip_special_tokens": True, "n_probs": 0,
        "id_slot": -1, "lora": [], "functions": [], "best_of_nothing": None, "logit_bias": None, "stop": None,
        "tools": None, "tool_choice": None, "response_format": None, "stream_options": None, "temperature": None,
        "top_p": None, "seed": None, "n": None, "user": None, "metadata": None, "samplers": [],
    }  # fmt: skip
    status, headers, _ = server.exchange(CHAT, chat(**neutral))
    assert status == 200 and headers["X-EdgeMoE-Ignored"] is None


def test_strict_refuses(model: Path, tmp_path: Path) -> None:
    with serving.serve(tmp_path, model, *SMALL, "--strict") as server:
        status, answer = server.ask(CHAT, chat(colour="blue"))
        assert status == 400 and answer["error"]["param"] == "colour" and answer["error"]["code"] == "unknown_parameter"
        assert server.ask(CHAT, chat(response_format={"type": "text", "hue": 1}))[0] == 400
        assert server.ask(CHAT, chat(use_beam_search=False, n_probs=0))[0] == 200


def test_other_names_of_known_ones(server: Served) -> None:
    assert server.ask(CHAT, chat(max_tokens=None, n_predict=3))[1]["usage"]["completion_tokens"] == 3
    assert server.ask(TEXT, {"prompt": "the", "n_predict": 3})[1]["usage"]["completion_tokens"] == 3
    wild = {"temperature": 1.5, "seed": 3, "max_tokens": 30}
    assert text_of(server, **wild, repetition_penalty=1.7) == text_of(server, **wild, repeat_penalty=1.7)
    assert text_of(server, **wild, repetition_penalty=1.7) != text_of(server, **wild)
    assert server.ask(CHAT, chat(max_tokens=-1, stop_token_ids=list(range(256))))[1]["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"typical_p": 0.2}, {"xtc_probability": 1.0, "xtc_threshold": 0.01}, {"top_n_sigma": 0.3}, {"mirostat": 1},
        {"mirostat": 2, "mirostat_tau": 1.0}, {"dynatemp_range": 1.4}, {"top_k": 1},
        {"dry_multiplier": 50.0, "dry_allowed_length": 0, "dry_base": 4.0, "dry_sequence_breakers": []},
    ],
)  # fmt: skip
def test_samplers_do_something_and_repeat(server: Served, fields: dict[str, Any]) -> None:
    wild = {"temperature": 1.5, "seed": 5, "max_tokens": 60, "top_p": 1, "min_p": 0, "top_k": 0}
    found = text_of(server, **{**wild, **fields})
    assert found == text_of(server, **{**wild, **fields}) and found != text_of(server, **wild)


def test_a_draw_of_its_own(server: Served) -> None:
    wild = {"temperature": 1.8, "seed": -1, "max_tokens": 20}
    assert len({text_of(server, **wild) for _ in range(4)}) > 1
    fixed = {"temperature": 1.8, "seed": 2**32 - 1, "max_tokens": 20}
    assert len({text_of(server, **fixed) for _ in range(3)}) == 1


def test_a_grammar(server: Served) -> None:
    assert text_of(server, grammar='root ::= "yes" | "no"', max_tokens=20) in ("yes", "no")
    found = server.ask(TEXT, {"prompt": "the", "grammar": 'root ::= "4" "2"'})[1]["choices"][0]
    assert found["text"] == "42" and found["finish_reason"] == "stop"
    assert server.ask(CHAT, chat(grammar="root ::= ("))[0] == 400
    assert server.ask(CHAT, chat(grammar='root ::= "x"', response_format={"type": "json_object"}))[0] == 400


def test_a_schema_wherever_it_is_said(server: Served) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    for fields in (
        {"json_schema": schema},
        {"response_format": {"type": "json_object", "schema": schema}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
    ):
        assert json.loads(text_of(server, **fields, max_tokens=60)) == {"n": 7}
    found = server.ask(TEXT, {"prompt": "the", "json_schema": schema, "max_tokens": 60})[1]["choices"][0]["text"]
    assert json.loads(found) == {"n": 7}


def test_ends(server: Served) -> None:
    """stop_token_ids end an answer without their text; ignore_eos lets no end token through."""
    whole = text_of(server, max_tokens=12)
    third = ord(whole[2])
    found = server.ask(CHAT, chat(max_tokens=12, stop_token_ids=[third]))[1]["choices"][0]
    assert found["message"]["content"] == whole[: whole.index(whole[2])] and found["finish_reason"] == "stop"
    end = server.ask("/tokenize", {"content": "<|im_end|>"})
    bias = {str(end[1]["tokens"][0]): 100} if end[0] == 200 else {}
    found = server.ask(CHAT, chat(logit_bias=bias, ignore_eos=True))[1]
    assert found["usage"]["completion_tokens"] == 6 and found["choices"][0]["finish_reason"] == "length"


def test_timings(server: Served) -> None:
    timings = server.ask(CHAT, chat())[1]["timings"]
    assert timings["predicted_n"] == 6 and timings["prompt_n"] > 6 and timings["cache_n"] == 0
    nothing = server.ask(CHAT, chat(stop_token_ids=list(range(256))))[1]
    assert nothing["usage"]["completion_tokens"] == 0 and nothing["timings"]["prompt_n"] == timings["prompt_n"]
    chunks = list(server.stream(CHAT, chat(stream=True, timings_per_token=True)))
    assert sum("timings" in chunk for chunk in chunks) >= 6
    chunks = list(server.stream(CHAT, chat(stream=True)))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if "timings" in chunk] == ["length"]
    assert all(chunk["choices"] for chunk in chunks)


def test_an_answer_that_is_begun_is_gone_on_with(server: Served) -> None:
    def prompt_tokens(**fields: Any) -> int:
        return int(server.ask(CHAT, chat(**fields))[1]["usage"]["prompt_tokens"])

    begun = [*HELLO, {"role": "assistant", "content": "QZ"}]
    plain, turned = prompt_tokens(), prompt_tokens(messages=begun, continue_final_message=False)
    for fields in ({}, {"continue_final_message": True}):
        assert prompt_tokens(messages=begun, **fields) == plain + 2
    assert turned > plain + 2 and prompt_tokens(messages=begun, add_generation_prompt=True) == turned
    assert text_of(server, messages=begun) == text_of(server, messages=begun) != text_of(server)
    assert server.ask(CHAT, chat(continue_final_message=True))[0] == 400
    assert server.ask(CHAT, chat(messages=begun, continue_final_message=True, add_generation_prompt=True))[0] == 400


# ---------------------------------------------------------------- log-probabilities


def test_where_a_token_begins_after_a_stop_text(server: Served) -> None:
    asked = {"prompt": "the", "max_tokens": 12, "logprobs": 1, "cache_prompt": False}
    whole = server.ask(TEXT, asked)[1]["choices"][0]["text"]
    # Held back at "cd" until it is clear that "cdX" does not come.
    misled = whole[3:5] + ("#" if whole[5] != "#" else "$")
    found = server.ask(TEXT, {**asked, "stop": misled})[1]["choices"][0]
    assert found["text"] == whole and found["logprobs"]["text_offset"] == begins(found["logprobs"]["tokens"])
    found = server.ask(TEXT, {**asked, "stop": whole[6:8]})[1]["choices"][0]
    told = found["logprobs"]
    assert "".join(told["tokens"]) == found["text"] == whole[:6] and told["text_offset"] == begins(told["tokens"])
    chunks = [chunk["choices"][0] for chunk in server.stream(TEXT, {**asked, "stop": misled, "stream": True})]
    offsets = [offset for chunk in chunks for offset in (chunk["logprobs"] or {"text_offset": []})["text_offset"]]
    assert len(offsets) == 12 and offsets == begins([text for chunk in chunks for text in tokens_of(chunk)])


def begins(tokens: list[str]) -> list[int]:
    return [sum(map(len, tokens[:i])) for i in range(len(tokens))]


def tokens_of(choice: Any) -> list[str]:
    return list((choice["logprobs"] or {"tokens": []})["tokens"])


def test_the_chosen_token_is_among_the_likeliest(server: Served) -> None:
    wild = {"temperature": 2, "seed": 11, "max_tokens": 30, "top_k": 0, "top_p": 1, "min_p": 0}
    told = server.ask(CHAT, chat(**wild, logprobs=True, top_logprobs=2))[1]["choices"][0]["logprobs"]["content"]
    assert any(one["token"] != one["top_logprobs"][0]["token"] for one in told)
    assert all(one["token"] in [top["token"] for top in one["top_logprobs"]] for one in told)
    told = server.ask(TEXT, {"prompt": "the", **wild, "logprobs": 1})[1]["choices"][0]["logprobs"]
    assert all(token in top for token, top in zip(told["tokens"], told["top_logprobs"], strict=True))


def test_the_likelihood_of_a_given_text(server: Served) -> None:
    """As lm-eval asks for it: echo, logprobs, no new token."""
    asked = {"prompt": "hello there", "max_tokens": 0, "echo": True, "logprobs": 2}
    status, answer = server.ask(TEXT, asked)
    (choice,) = answer["choices"]
    told = choice["logprobs"]
    assert status == 200 and choice["text"] == "hello there" == "".join(told["tokens"])
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert all(value < 0 for value in told["token_logprobs"][1:])
    assert all(t in top for t, top in zip(told["tokens"][1:], told["top_logprobs"][1:], strict=True))
    assert answer["usage"]["completion_tokens"] == 0
    tokens = [ord(c) for c in "hello"]
    several = server.ask(TEXT, {**asked, "prompt": [tokens, tokens]})[1]["choices"]
    assert several[0]["logprobs"] == several[1]["logprobs"] and len(several[0]["logprobs"]["tokens"]) == 5
    # What a prompt's tokens are given is what they are given when they are written.
    written = server.ask(TEXT, {"prompt": "hello there", "max_tokens": 3, "logprobs": 0, "cache_prompt": False})[1]
    line = "hello there" + written["choices"][0]["text"]
    scored = server.ask(TEXT, {**asked, "prompt": line})[1]["choices"][0]["logprobs"]["token_logprobs"]
    if len(scored) == len(told["tokens"]) + 3:  # the text was cut into the same tokens
        assert scored[-3:] == pytest.approx(written["choices"][0]["logprobs"]["token_logprobs"], abs=1e-3)


# ---------------------------------------------------------------- statuses and the log


def test_a_method_that_is_not_possible_comes_before_a_body_of_the_wrong_type(server: Served) -> None:
    assert server.ask("/v1/models", raw=b"x", headers={"Content-Type": "text/plain"}, method="POST")[0] == 405
    assert server.ask(CHAT, raw=b"x", headers={"Content-Type": "text/plain"}, method="PUT")[0] == 405
    assert server.ask("/nothing", raw=b"x", headers={"Content-Type": "text/plain"}, method="POST")[0] == 404
    assert server.ask(CHAT, raw=b"{}", headers={"Content-Type": "text/plain"})[0] == 415


def test_every_request_is_logged(model: Path, tmp_path: Path) -> None:
    with serving.serve(tmp_path, model, *SMALL, "-v") as server:
        server.ask("/v1/models")
        server.ask("/nothing")
        server.ask("/v1/models", method="PUT")
        server.ask("/v1/models", headers={"Origin": "https://evil.example"})
        server.ask(CHAT, raw=b"{")
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/%1b%5b2J")
        connection.getresponse().read()
        connection.close()
    said = "\n".join(server.talk)
    for line in (
        "GET /v1/models 200",
        "GET /nothing 404",
        "PUT /v1/models 405",
        "GET /v1/models 403",
        f"POST {CHAT} 400",
    ):
        assert line in said
    assert "\x1b" not in said


def test_the_context_that_is_served(server: Served) -> None:
    (card,) = server.ask("/v1/models")[1]["data"]
    assert card["context_length"] == card["max_model_len"] == 512 and card["n_ctx_train"] == 4096
