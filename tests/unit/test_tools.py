"""Calls read out of a model's text as it comes, the grammar that they follow, and how models are told of tools."""

from __future__ import annotations

import json

import pytest

from edgemoe.serve import tools
from edgemoe.serve.call_reader import CallBegun, CallPart, CallReader, Item
from edgemoe.serve.calls import Call, Known, calls_grammar
from edgemoe.serve.failures import ApiError
from edgemoe.serve.forms import HERMES, Form
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

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = Tool(Function("add", "adds", SCHEMA))


def items(text: str, step: int, form: Form = HERMES, *, most: int | None = None) -> list[Item]:
    reader = CallReader(form, most=most)
    found = [item for i in range(0, len(text), step) for item in reader.feed(text[i : i + step])]
    return [*found, *reader.finish()]


def read(text: str, step: int, *, most: int | None = None) -> list[str | Call]:
    """Words and whole calls; what is told of calls before must come to the same."""
    found = items(text, step, most=most)
    begun = [item.name for item in found if isinstance(item, CallBegun)]
    calls = [item for item in found if isinstance(item, Call)]
    assert begun[: len(calls)] == [call.name for call in calls] and len(begun) - len(calls) in (0, 1)
    told = "".join(item.text for item in found if isinstance(item, CallPart))
    assert told.startswith("".join(call.arguments for call in calls))
    joined: list[str | Call] = []
    for item in found:
        if isinstance(item, CallBegun | CallPart):
            continue
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
    assert read(f"{CALL} Done.", step) == [add, " Done."]
    assert read("1 < 2 and <tool", step) == ["1 < 2 and <tool"]
    assert read("no calls here", step) == ["no calls here"]


def test_arguments_come_while_they_are_written() -> None:
    reader = CallReader()
    assert [*reader.feed('<tool_call>\n{"name": "add", "arguments": ')] == []
    assert [*reader.feed('{"a": ')] == [CallBegun("add"), CallPart('{"a": ')]
    assert [*reader.feed('"}\\"')] == [CallPart('"}\\"')]
    assert [*reader.feed('{"')] == [CallPart('{"')]
    assert [*reader.feed("}}\n</tool")] == [CallPart("}"), Call("add", '{"a": "}\\"{"}')]
    assert [*reader.feed("_call>"), *reader.finish()] == []


def test_what_json_has_no_place_for_in_a_string_comes_as_json_spells_it() -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {\n"a": "x\n\ty"}}\n</tool_call>'
    (call,) = read(text, 1)
    assert isinstance(call, Call) and json.loads(call.arguments) == {"a": "x\n\ty"}


def test_arguments_that_are_no_json_after_all_are_no_call() -> None:
    broken = '<tool_call>\n{"name": "add", "arguments": {"a": nothing]}\n</tool_call>'
    for step in (1, 5, 1000):
        whole = [item for item in items(broken + CALL, step) if not isinstance(item, CallBegun | CallPart)]
        assert whole == [Call("add", '{"a": 1}')]


def test_calls_that_nobody_asked_for_are_not_begun() -> None:
    found = items(f"{CALL}\n{CALL}", 3, most=1)
    assert found.count(CallBegun("add")) == 1 and len([item for item in found if isinstance(item, Call)]) == 1


def test_half_a_call_is_never_text() -> None:
    assert read('<tool_call>\n{"name": "add", "argu', 3) == []
    assert read('Well. <tool_call>\n{"name": "add", "arguments": {"a"', 3) == ["Well. "]


def test_what_stands_in_a_calls_place_and_is_none_is_text() -> None:
    assert read("<tool_call>\n[1]\n</tool_call>", 3) == ["<tool_call>\n[1]\n"]


def test_a_call_in_another_order_is_one_all_the_same() -> None:
    other = '<tool_call>{"parameters": {"a": 1}, "name": "add"}</tool_call>'
    assert read(other, 3) == [Call("add", '{"a": 1}')]


def test_a_call_without_its_end_mark_still_counts() -> None:
    assert read(CALL.removesuffix("</tool_call>"), 5) == [Call("add", '{"a": 1}')]


def test_a_next_call_that_barely_began_is_left_out() -> None:
    assert read(f"{CALL}\n<tool_c", 4) == [Call("add", '{"a": 1}')]


def test_no_more_calls_are_taken_than_were_asked_for() -> None:
    assert read(f"{CALL}\n{CALL}\n{CALL}", 9, most=1) == [Call("add", '{"a": 1}')]


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


def test_the_explanation_carries_every_tool_and_a_call_as_an_example() -> None:
    text = tools.explained([ADD])
    assert '"name": "add"' in text and '"description": "adds"' in text and "<tool_response>" in text
    assert '<tool_call>\n{"name": "NAME", "arguments": {"KEY": "VALUE"}}\n</tool_call>' in text


def test_the_grammar_waits_for_the_mark_unless_a_call_is_required() -> None:
    text, trigger, notes = tools.grammar(HERMES, [ADD], request(tools=[ADD]), required=False)
    assert trigger == "<tool_call>" and text.startswith('root ::= "\\n{\\"name\\": \\"" call') and not notes
    one = request(tools=[ADD], tool_choice="required", parallel_tool_calls=False)
    text, trigger, _ = tools.grammar(HERMES, [ADD], one, required=True)
    assert trigger == "" and text.startswith('root ::= "<tool_call>" "\\n{\\"name\\": \\"" call')
    assert ")*" not in text.splitlines()[0]


def test_a_named_function_is_the_only_one_and_called_once() -> None:
    other = Tool(Function("sub", None, SCHEMA))
    named = request(tools=[ADD, other], tool_choice=NamedTool(NamedFunction("sub")))
    text, _, _ = tools.grammar(HERMES, [ADD, other], named, required=True)
    assert '"add"' not in text and '"sub"' in text and ")*" not in text.splitlines()[0]
    assert tools.most_calls(named) == 1


def test_what_a_schema_of_parameters_asks_in_vain_is_noted_or_refused_by_the_functions_name() -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    _, notes = calls_grammar(HERMES, [Known("add", odd)], required=True, parallel=True)
    assert len(notes) == 1 and "`add`" in notes[0] and "`uniqueItems`" in notes[0]
    strict = Tool(Function("add", None, odd, strict=True))
    with pytest.raises(ApiError, match="parameters of `add`: `uniqueItems`"):
        tools.grammar(HERMES, [strict], request(tools=[strict]), required=True)


def test_earlier_calls_are_written_as_they_were_made() -> None:
    message = Message("assistant", None, tool_calls=[ToolCall(FunctionCall("add", '{"a": 1}'), "call_1")])
    text = tools.call_text(message)
    assert json.loads(text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))["arguments"] == {"a": 1}
    with pytest.raises(ApiError, match="not JSON"):
        tools.call_text(Message("assistant", None, tool_calls=[ToolCall(FunctionCall("add", "{"), "call_1")]))
