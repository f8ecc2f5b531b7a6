"""The server in the words of other APIs: OpenAI's responses, Anthropic's messages, Ollama's and llama.cpp's endpoints.

With a model of random weights, over plain HTTP, and with the clients of these APIs where they are installed.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
import serving
import tinymoe
from console import needs_library
from serving import Served

from edgemoe.serve.app import SPELLINGS

pytestmark = needs_library

HELLO = [{"role": "user", "content": "hello there"}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
ANEW = {"cache_prompt": False}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("apis")
    model = tinymoe.write(folder / "alpha.gguf", "qwen3moe")
    with serving.serve(folder / "cache", model, "--threads", 1, "--ctx", 1024, "--memory", "512MiB") as found:
        yield found


def raw(server: Served, path: str, body: Any) -> bytes:
    """A stream as it is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return answer.read()
    finally:
        connection.close()


def events(server: Served, path: str, body: Any) -> list[tuple[str, Any]]:
    """Named server-sent events."""
    found = []
    for block in raw(server, path, body).decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def chatted(server: Served, **fields: Any) -> str:
    found = server.ask("/v1/chat/completions", {"messages": HELLO, "max_tokens": 8, **ANEW, **fields})
    return str(found[1]["choices"][0]["message"]["content"])


# ---------------------------------------------------------------- OpenAI's responses


def test_a_response(server: Served) -> None:
    status, found = server.ask("/v1/responses", {"model": "x", "input": "hello there", "max_output_tokens": 8, **ANEW})
    assert status == 200 and found["object"] == "response" and found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = found["output"]
    assert item["type"] == "message" and item["content"][0]["text"] == chatted(server)
    usage = found["usage"]
    assert usage["output_tokens"] == 8 and usage["total_tokens"] == usage["input_tokens"] + 8


def test_a_response_as_it_comes(server: Served) -> None:
    asked = {"input": HELLO, "max_output_tokens": 6, "stream": True, "instructions": "be brief", **ANEW}
    found = events(server, "/v1/responses", asked)
    names = [name for name, _ in found]
    assert all(name == data["type"] for name, data in found)
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    assert names[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert names[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    text = "".join(data["delta"] for name, data in found if name == "response.output_text.delta")
    last = found[-1][1]["response"]
    assert last["output"][0]["content"][0]["text"] == text and last["usage"]["output_tokens"] == 6
    whole = server.ask("/v1/responses", {**asked, "stream": False})[1]
    assert whole["output"][0]["content"][0]["text"] == text


def test_a_response_that_calls(server: Served) -> None:
    tools = [{"type": "function", "name": "add", "parameters": SCHEMA, "strict": True}, {"type": "web_search"}]
    asked = {"input": "hello", "tools": tools, "tool_choice": "required", "parallel_tool_calls": False, **ANEW}
    found = server.ask("/v1/responses", asked)[1]
    (call,) = found["output"]
    assert call["type"] == "function_call" and call["name"] == "add" and json.loads(call["arguments"])["a"] in (1, 2)
    streamed = events(server, "/v1/responses", {**asked, "stream": True})
    done = [data for name, data in streamed if name == "response.function_call_arguments.done"]
    assert [data["arguments"] for data in done] == [call["arguments"]]
    parts = [data["delta"] for name, data in streamed if name == "response.function_call_arguments.delta"]
    assert "".join(parts) == call["arguments"] and len(parts) > 1
    cut = {**asked, "max_output_tokens": len(parts) // 2 + 8}
    half = events(server, "/v1/responses", {**cut, "stream": True})[-1]
    assert half[0] == "response.incomplete" and half[1]["response"]["output"][-1]["status"] == "incomplete"
    assert [item["type"] for item in server.ask("/v1/responses", cut)[1]["output"]] == ["message"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "3"}
    again = {"input": [{"role": "user", "content": "hello"}, call, output], "max_output_tokens": 4, **ANEW}
    first = server.ask("/v1/responses", {**again, "tools": tools})[1]
    after = {"input": [output], "previous_response_id": found["id"], "max_output_tokens": 4, "tools": tools, **ANEW}
    second = server.ask("/v1/responses", after)[1]
    assert first["usage"]["input_tokens"] == second["usage"]["input_tokens"]
    assert first["output"][0]["content"] == second["output"][0]["content"]


def test_a_response_tells_how_far_it_is_where_that_is_asked_for(server: Served) -> None:
    asked = {"input": "hello there", "max_output_tokens": 6, "stream": True, **ANEW}
    told = events(server, "/responses", {**asked, "timings_per_token": True, "return_progress": True})
    progress = [data["prompt_progress"] for name, data in told if "prompt_progress" in data]
    assert progress[0]["processed"] == progress[0]["cache"] == 0
    assert progress[-1]["processed"] == progress[-1]["total"] > 0 and len(progress) > 1
    assert all(data["timings"] for name, data in told if name == "response.output_text.delta")
    assert told[-1][1]["timings"]["predicted_n"] == 6
    plain = events(server, "/responses", asked)
    assert not [data for name, data in plain[:-1] if {"timings", "prompt_progress"} & data.keys()]


def test_tokens_of_a_request_are_counted_without_an_answer(server: Served) -> None:
    for path, asked in (("/v1/responses", {"input": "hello there"}), ("/v1/chat/completions", {"messages": HELLO})):
        status, counted = server.ask(f"{path}/input_tokens", asked)
        answer = server.ask(path, {**asked, "max_tokens": 1, **ANEW})[1]["usage"]
        assert status == 200 and counted["input_tokens"] == answer.get("input_tokens", answer.get("prompt_tokens"))
        assert server.ask(f"{path}/input_tokens", {})[0] == 400


def test_llama_servers_other_names_are_the_same(server: Served) -> None:
    for other, path in SPELLINGS.items():
        method = "GET" if path in ("/v1/models", "/health") else "POST"
        body = {"messages": HELLO, "input": "x", "prompt": "x", "max_tokens": 1, "max_output_tokens": 1, **ANEW}
        sent = body if method == "POST" else None
        found, wanted = (server.ask(one, sent, method=method) for one in (other, path))
        assert found[0] == wanted[0] in (200, 400) and found[1].keys() == wanted[1].keys(), other
        assert server.ask(other, sent, method="DELETE")[0] == 405


def test_a_response_follows_another(server: Served) -> None:
    first = server.ask("/v1/responses", {"input": "hello there", "max_output_tokens": 8, **ANEW})[1]
    text = first["output"][0]["content"][0]["text"]
    more = {"input": "more", "max_output_tokens": 4, **ANEW}
    second = server.ask("/v1/responses", {**more, "previous_response_id": first["id"]})[1]
    assert second["previous_response_id"] == first["id"]
    messages = [*HELLO, {"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
    assert second["output"][0]["content"][0]["text"] == chatted(server, messages=messages, max_tokens=4)
    third = server.ask("/v1/responses", {**more, "previous_response_id": second["id"]})[1]
    assert third["usage"]["input_tokens"] > second["usage"]["input_tokens"]
    unkept = server.ask("/v1/responses", {**more, "store": False})[1]
    for name in (unkept["id"], "resp_nothing"):
        status, answer = server.ask("/v1/responses", {**more, "previous_response_id": name})
        assert status == 404 and answer["error"]["code"] == "previous_response_not_found"


@pytest.mark.parametrize(
    "body",
    [
        {}, {"input": []}, {"input": [{"type": "computer_call"}]}, {"input": [{"content": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": "x", "tools": [{"type": "function", "name": "a b"}]},
        {"input": "x", "tool_choice": {"type": "function", "name": "b"}, "tools": [{"type": "function", "name": "a"}]},
    ],
)  # fmt: skip
def test_responses_that_make_no_sense(server: Served, body: Any) -> None:
    for stream in (False, True):
        status, answer = server.ask("/v1/responses", {**body, "stream": stream})
        assert status == 400 and answer["error"]["type"] == "invalid_request_error"


def test_openais_client(server: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    whole = client.responses.create(model="alpha", input="hello there", max_output_tokens=8, extra_body=ANEW)
    assert whole.output_text == chatted(server)
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    with client.responses.stream(model="alpha", input="hello there", text=form, extra_body=ANEW) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text and json.loads(text)["a"] in (1, 2)


# ---------------------------------------------------------------- Anthropic's messages


def test_a_message(server: Served) -> None:
    asked = {"model": "claude", "max_tokens": 8, "messages": HELLO, **ANEW}
    status, found = server.ask("/v1/messages", asked, headers={"anthropic-version": "2023-06-01"})
    assert status == 200 and found["type"] == "message" and found["stop_reason"] == "max_tokens"
    assert found["content"] == [{"type": "text", "text": chatted(server)}]
    assert found["usage"]["output_tokens"] == 8
    count = server.ask("/v1/messages/count_tokens", {"model": "claude", "messages": HELLO})[1]
    assert count == {"input_tokens": found["usage"]["input_tokens"]}
    stop = found["content"][0]["text"][4:6]
    ended = server.ask("/v1/messages", {**asked, "stop_sequences": [stop]})[1]
    assert ended["stop_reason"] == "stop_sequence" and ended["stop_sequence"] == stop


def test_a_message_as_it_comes(server: Served) -> None:
    blocks = [{"role": "user", "content": [{"type": "text", "text": "hello there", "cache_control": {}}]}]
    found = events(server, "/v1/messages", {"max_tokens": 8, "messages": blocks, "stream": True, **ANEW})
    names = [name for name, _ in found if name != "ping"]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(d["delta"]["text"] for n, d in found if n == "content_block_delta") == chatted(server)
    assert found[-2][1]["delta"]["stop_reason"] == "max_tokens"


def test_a_message_that_calls(server: Served) -> None:
    tools = [{"name": "add", "input_schema": SCHEMA}, {"type": "web_search_20250305", "name": "web_search"}]
    asked = {"max_tokens": 200, "messages": HELLO, "tools": tools, "system": [{"type": "text", "text": "be brief"}]}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    status, found = server.ask("/v1/messages", {**asked, "tool_choice": choice, **ANEW})
    (call,) = found["content"]
    assert status == 200 and found["stop_reason"] == "tool_use"
    assert call["type"] == "tool_use" and call["name"] == "add" and call["input"]["a"] in (1, 2)
    streamed = events(server, "/v1/messages", {**asked, "tool_choice": choice, "stream": True, **ANEW})
    parts = [data["delta"]["partial_json"] for name, data in streamed if name == "content_block_delta"]
    assert json.loads("".join(parts)) == call["input"] and len(parts) > 1
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "3"}]}
    turns = [
        *HELLO,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": ""}, call]},
        {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
    ]
    assert server.ask("/v1/messages", {**asked, "messages": turns, "max_tokens": 4})[0] == 200


def test_messages_that_make_no_sense(server: Served) -> None:
    image = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    for body in ({}, {"max_tokens": 4, "messages": []}, {"messages": HELLO}, {"max_tokens": 4, "messages": image}):
        status, answer = server.ask("/v1/messages", body)
        assert status == 400 and answer["type"] == "error" and answer["error"]["type"] == "invalid_request_error"
    broken = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [{"no": "type"}]}]}
    assert server.ask("/v1/messages", {"max_tokens": 4, "messages": [broken]})[0] == 400


def test_anthropics_client(server: Served) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "alpha", "max_tokens": 8, "messages": HELLO, "extra_body": ANEW}
    whole = client.messages.create(**asked)
    assert whole.content[0].text == chatted(server)
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().usage.output_tokens == 8
    assert client.messages.count_tokens(model="alpha", messages=HELLO).input_tokens > 8
    with pytest.raises(anthropic.BadRequestError, match="source"):
        client.messages.create(
            **{**asked, "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}
        )


# ---------------------------------------------------------------- Ollama's


def lines(server: Served, path: str, body: Any) -> list[Any]:
    return [json.loads(line) for line in raw(server, path, body).splitlines()]


def test_ollamas_chat(server: Served) -> None:
    asked = {"model": "alpha:latest", "messages": HELLO, "options": {"num_predict": 8, "num_ctx": 4096}}
    found = lines(server, "/api/chat", asked)
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    text = "".join(line["message"]["content"] for line in found)
    last = found[-1]
    assert last["done_reason"] == "length" and last["eval_count"] == 8 and last["total_duration"] > 0
    whole = server.ask("/api/chat", {**asked, "stream": False})[1]
    assert (
        whole["message"]["role"] == "assistant" and whole["done"] and len(whole["message"]["content"]) >= 1 <= len(text)
    )
    tools = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}]
    form = server.ask("/api/chat", {**asked, "format": SCHEMA, "stream": False, "options": {}})[1]
    assert json.loads(form["message"]["content"])["a"] in (1, 2)
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    turns = [*HELLO, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_name": "add", "content": "3"}]
    assert server.ask("/api/chat", {**asked, "messages": turns, "tools": tools, "stream": False})[0] == 200
    assert server.ask("/api/chat", {"model": "alpha"})[1]["done_reason"] == "load"


def test_ollamas_generate(server: Served) -> None:
    asked = {"model": "alpha", "prompt": "hello there", "options": {"num_predict": 6}}
    assert lines(server, "/api/generate", asked)[-1]["eval_count"] == 6
    plain = server.ask("/api/generate", {**asked, "raw": True, "stream": False})[1]
    said = server.ask("/v1/completions", {"prompt": "hello there", "max_tokens": 6})[1]
    assert plain["response"] == said["choices"][0]["text"] and plain["prompt_eval_count"] < 12
    for form in ("json", SCHEMA):
        raw_form = {**asked, "raw": True, "format": form, "stream": False, "options": {"num_predict": 200}}
        assert isinstance(json.loads(server.ask("/api/generate", raw_form)[1]["response"]), dict)
    for refused in ({"images": ["x"]}, {"suffix": "x"}, {"images": ["x"], "raw": True}, {"suffix": "x", "raw": True}):
        status, answer = server.ask("/api/generate", {**asked, **refused})
        assert status == 400 and set(answer) == {"error"}, refused


def test_what_ollama_tells_of_models(server: Served) -> None:
    (card,) = server.ask("/api/tags")[1]["models"]
    assert card["name"] == card["model"] == "alpha" and card["size"] > 0 and len(card["digest"]) == 64
    shown = server.ask("/api/show", {"model": "alpha"})[1]
    assert shown["details"]["family"] == "qwen3moe" and shown["model_info"]["qwen3moe.context_length"] == 1024
    assert "tools" in shown["capabilities"]
    assert server.ask("/api/version")[1]["version"]
    assert [model["name"] for model in server.ask("/api/ps")[1]["models"]] == ["alpha"]


def test_ollamas_client(server: Served) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=server.url)
    options = {"num_predict": 8}
    whole = client.chat(model="alpha", messages=HELLO, options=options)
    parts = list(client.chat(model="alpha", messages=HELLO, options=options, stream=True))
    assert whole.message.content and parts[-1].done and parts[-1].eval_count == 8
    assert client.generate(model="alpha", prompt="hello", options=options).eval_count == 8
    assert list(client.generate(model="alpha", prompt="hello", options=options, stream=True))[-1].done
    assert [model.model for model in client.list().models] == ["alpha"]
    assert client.show("alpha").details.format == "gguf" and client.ps().models[0].model == "alpha"


# ---------------------------------------------------------------- llama.cpp's


def test_llama_cpps_completion(server: Served) -> None:
    greedy = {"temperature": 0, **ANEW}  # so that what is picked is among the likeliest
    asked = {"prompt": "the", "n_predict": 6, "n_probs": 2, "return_tokens": True, **greedy}
    status, found = server.ask("/completion", asked)
    said = server.ask("/v1/completions", {"prompt": "the", "max_tokens": 6, **greedy})[1]["choices"][0]["text"]
    assert status == 200 and found["content"] == said and found["stop"] and found["stop_type"] == "limit"
    assert len(found["tokens"]) == found["tokens_predicted"] == 6 and found["timings"]["predicted_n"] == 6
    assert [len(one["top_logprobs"]) for one in found["completion_probabilities"]] == [2] * 6
    stop = said[3:5]
    ended = server.ask("/completion", {**asked, "stop": [stop]})[1]
    assert (
        ended["stop_type"] == "word" and ended["stopping_word"] == stop and ended["content"] == said[: said.index(stop)]
    )
    pieces = [
        json.loads(block[6:]) for block in raw(server, "/completion", {**asked, "stream": True}).split(b"\n\n") if block
    ]
    assert "".join(piece["content"] for piece in pieces) == said and pieces[-1]["stop"]
    assert server.ask("/completion", {"prompt": ["a", "b"]})[0] == 400


def test_tokens_and_templates(server: Served) -> None:
    tokens = server.ask("/tokenize", {"content": "hello there"})[1]["tokens"]
    assert server.ask("/detokenize", {"tokens": tokens})[1]["content"] == "hello there"
    pieces = server.ask("/tokenize", {"content": "hello there", "with_pieces": True})[1]["tokens"]
    assert [one["id"] for one in pieces] == tokens and "".join(one["piece"] for one in pieces) == "hello there"
    assert server.ask("/detokenize", {"tokens": [10**6]})[0] == 400
    prompt = server.ask("/apply-template", {"messages": HELLO})[1]["prompt"]
    assert "hello there" in prompt and prompt.endswith("assistant\n")
    whole = server.ask("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})[1]["usage"]["prompt_tokens"]
    assert len(server.ask("/tokenize", {"content": prompt})[1]["tokens"]) == whole


def test_what_llama_cpp_tells_of_itself(server: Served) -> None:
    props = server.ask("/props")[1]
    assert props["total_slots"] == 1 and props["default_generation_settings"]["n_ctx"] == 1024
    assert "im_start" in props["chat_template"]
    (slot,) = server.ask("/slots")[1]
    assert slot["n_ctx"] == 1024 and slot["is_processing"] is False
