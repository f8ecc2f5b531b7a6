"""Through the server: schemas of `json_object`, thinking apart, calls in the model's form, variables, marks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scripted
from serving import Served, serve

CHAT = "/v1/chat/completions"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPENED = TURNS + "{{ '<|im_start|>assistant\n<think>\n' }}"
GLM = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>{% endfor %}"
    "</tool_call>{% endfor %}{% endfor %}{{ '<|assistant|>\n' }}"
)
ASKED = TURNS + "{% if enable_thinking is false %}NNNNNNNN{% endif %}{{ reasoning_effort }}{{ '\n' }}"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    marks = ["<think>", "</think>"]
    called = ["<tool_call>", "weather", "<arg_key>city", "</arg_key><arg_value>", "Rome", "</arg_value></tool_call>"]
    models: dict[str, Path] = {
        "schema": scripted.write(folder / "schema.gguf", ['{"b": ', '"x"', "}"]),
        "thinks": scripted.write(folder / "t.gguf", ["Let me see", "</think>", "Yes"], control=marks, template=OPENED),
        "calls": scripted.write(folder / "c.gguf", called, template=GLM),
        "asked": scripted.write(folder / "a.gguf", ["one", "<|tool|>", "two"], control=["<|tool|>"], template=ASKED),
    }
    named = [f"{name}={path}" for name, path in models.items()]
    with serve(tmp_path_factory.mktemp("cache"), *named, "--memory", "400MiB", "--ctx", "1024") as found:
        yield found


def chat(server: Served, model: str, **more: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, **more}
    status, found = server.ask(CHAT, body)
    assert status == 200, found
    return found


def test_a_schema_beside_json_object_is_held(server: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for form in (
        {"type": "json_object", "schema": schema},
        {"type": "json_schema", "schema": schema},
        {"type": "json_schema", "json_schema": {"schema": schema}},
    ):
        content = chat(server, "schema", response_format=form)["choices"][0]["message"]["content"]
        assert isinstance(json.loads(content)["a"], int), content


def test_thinking_stands_apart_whole_and_streamed(server: Served) -> None:
    message = chat(server, "thinks")["choices"][0]["message"]
    assert message["reasoning_content"] == "Let me see" and message["content"] == "Yes"
    body = {"model": "thinks", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    deltas = [chunk["choices"][0]["delta"] for chunk in server.stream(CHAT, body)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me see"
    assert "".join(delta.get("content", "") or "" for delta in deltas) == "Yes"


def test_a_schema_is_held_behind_the_thinking(server: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": {"const": [1]}}}
    message = chat(server, "thinks", response_format=form)["choices"][0]["message"]
    assert message["reasoning_content"] == "Let me see" and json.loads(message["content"]) == [1]


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_in_the_models_own_form_is_a_call(server: Served, choice: Any) -> None:
    found = chat(server, "calls", tools=TOOLS, tool_choice=choice)["choices"][0]
    (call,) = found["message"]["tool_calls"]
    assert call["function"]["name"] == "weather" and found["finish_reason"] == "tool_calls"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"} and not found["message"]["content"]


def test_half_a_call_is_no_content(server: Served) -> None:
    choice = chat(server, "calls", tools=TOOLS, max_tokens=4)["choices"][0]
    assert not choice["message"]["content"] and "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "length"


def test_variables_reach_the_template(server: Served) -> None:
    def n_prompt(**more: Any) -> int:
        return int(chat(server, "asked", **more)["usage"]["prompt_tokens"])

    plain = n_prompt()
    for more in ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}):
        assert n_prompt(**more) == plain + 8
    assert n_prompt(reasoning_effort="low") == plain + 3
    body = {"model": "asked", "messages": [{"role": "user", "content": "x"}]}
    status, found = server.ask(CHAT, {**body, "chat_template_kwargs": {"messages": []}})
    assert status == 400 and "messages" in found["error"]["message"]


def test_the_log_probability_of_a_control_token_names_it(server: Served) -> None:
    tokens = chat(server, "asked", logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]["content"]
    assert tokens[1]["token"] == tokens[1]["top_logprobs"][0]["token"] == "<|tool|>"
