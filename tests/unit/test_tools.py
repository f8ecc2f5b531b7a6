"""Calls read out of a model's text as it comes, and the grammar that they follow."""

from __future__ import annotations

import json

import pytest

from edgemoe.serve import tools
from edgemoe.serve.failures import ApiError
from edgemoe.serve.protocol import (
    ChatRequest,
    Function,
    FunctionCall,
    Message,
    NamedFunction,
    NamedTool,
    Tool,
    ToolCall,
)
from edgemoe.serve.tools import Call, CallReader

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ADD = Tool(Function("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}))


def read(text: str, step: int) -> list[str | Call]:
    reader = CallReader()
    found: list[str | Call] = []
    for i in range(0, len(text), step):
        found += reader.feed(text[i : i + step])
    found += reader.finish()
    joined: list[str | Call] = []
    for item in found:
        if isinstance(item, str) and joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    return joined


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_calls_and_words_come_apart_wherever_the_text_is_cut(step: int) -> None:
    add = Call("add", '{"a": 1}')
    assert read(CALL, step) == [add]
    assert read(f"Let me see. {CALL}\n{CALL}", step) == ["Let me see. ", add, add]
    assert read("1 < 2 and <tool", step) == ["1 < 2 and <tool"]
    assert read("no calls here", step) == ["no calls here"]


def test_half_a_call_is_text() -> None:
    assert read('<tool_call>\n{"name": "add", "argu', 3) == ['<tool_call>\n{"name": "add", "argu']
    assert read("<tool_call>\n[1]\n</tool_call>", 3) == ["<tool_call>\n[1]\n"]


def test_a_call_without_its_end_mark_still_counts() -> None:
    assert read(CALL.removesuffix("</tool_call>"), 5) == [Call("add", '{"a": 1}')]


def test_a_next_call_that_barely_began_is_left_out() -> None:
    assert read(f"{CALL}\n<tool_c", 4) == [Call("add", '{"a": 1}')]


def request(**fields: object) -> ChatRequest:
    return ChatRequest(model="m", messages=[Message("user", "x")], **fields)  # type: ignore[arg-type]


def test_tools_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ApiError, match="two tools"):
        tools.offered(request(tools=[ADD, ADD]))
    with pytest.raises(ApiError, match="needs `tools`"):
        tools.offered(request(tool_choice="required"))
    with pytest.raises(ApiError, match="not among"):
        tools.offered(request(tools=[ADD], tool_choice=NamedTool(NamedFunction("sub"))))
    assert tools.offered(request(tools=[ADD], tool_choice="none")) == []


def test_only_a_template_that_speaks_the_form_is_given_the_tools() -> None:
    assert tools.speaks_hermes("{% if tools %}<tool_call>{% endif %}")
    assert not tools.speaks_hermes("{% if tools %}<tool_call><function=x>{% endif %}")
    assert not tools.speaks_hermes("{{ messages }}")
    assert not tools.speaks_hermes(None)


def test_the_explanation_carries_every_tool() -> None:
    text = tools.explained([ADD])
    assert '"name": "add"' in text and '"description": "adds"' in text and "<tool_response>" in text


def test_the_grammar_waits_for_the_mark_unless_a_call_is_required() -> None:
    text, trigger = tools.grammar([ADD], False, "auto", parallel=True)
    assert trigger == "<tool_call>" and text.startswith('root ::= "\\n" call')
    text, trigger = tools.grammar([ADD], True, "required", parallel=False)
    assert trigger == "" and text.startswith('root ::= "<tool_call>" "\\n" call')
    assert ")*" not in text.splitlines()[0]


def test_earlier_calls_are_written_as_they_were_made() -> None:
    message = Message("assistant", None, tool_calls=[ToolCall(FunctionCall("add", '{"a": 1}'), "call_1")])
    text = tools.call_text(message)
    assert json.loads(text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))["arguments"] == {"a": 1}
    with pytest.raises(ApiError, match="not JSON"):
        tools.call_text(Message("assistant", None, tool_calls=[ToolCall(FunctionCall("add", "{"), "call_1")]))
