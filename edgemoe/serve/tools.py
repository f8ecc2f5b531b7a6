"""Tools: how a model is told about them, and what its calls must look like.

Each model calls in its own form (`forms.py`). A chat template that tells of tools is given them as they are; any other
is given them in the system prompt, with a call as an example. A grammar makes every call well-formed (`calls.py`): from
the first token where a call is required, else from where the model begins one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from ..errors import UsageError
from .calls import Known, calls_grammar
from .failures import invalid, said
from .forms import HERMES, Form, example, written
from .protocol import ChatRequest, Message, NamedTool, Tool

_EXPLANATION = """You can call functions. Each line between <tools> and </tools> describes one:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments as JSON, like this:
{example}
Its result is then given to you between <tool_response> and </tool_response>."""


def offered(request: ChatRequest) -> list[Tool]:
    """The tools that the model is told about. Raises ApiError."""
    tools = request.tools or []
    names = [tool.function.name for tool in tools]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise invalid(f"two tools are called `{doubled}`", "tools")
    choice = request.tool_choice
    if choice not in (None, "none", "auto") and not tools:
        raise invalid("`tool_choice` needs `tools`", "tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise invalid(f"`tool_choice` names `{choice.function.name}`, which is not among the tools", "tool_choice")
    return [] if choice == "none" else tools


def made(name: str | None, description: str | None, parameters: dict[str, Any] | None, strict: bool | None) -> Tool:
    """A tool of another protocol. Raises ApiError."""
    function = {"name": name, "description": description, "parameters": parameters, "strict": strict}
    try:
        return msgspec.convert({"function": function}, Tool)
    except msgspec.ValidationError:
        raise invalid(f"a tool cannot be called `{name!s:.100}`", "tools") from None


def described(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates expect them."""
    return [msgspec.to_builtins(tool) for tool in tools]


def explained(tools: Sequence[Tool], form: Form = HERMES) -> str:
    """Tools in words, for the system prompt."""
    lines = []
    for tool in tools:
        function = {key: value for key, value in msgspec.to_builtins(tool.function).items() if value is not None}
        function.pop("strict", None)
        lines.append(json.dumps(function, ensure_ascii=False))
    return _EXPLANATION.format(tools="\n".join(lines), example=example(form) or example(HERMES))


def call_text(message: Message) -> str:
    """An assistant's earlier calls as it wrote them."""
    calls = []
    for call in message.tool_calls or []:
        arguments = json.dumps(arguments_of(call.function.arguments), ensure_ascii=False)
        calls.append(written(HERMES, json.dumps(call.function.name)[1:-1], arguments))
    return "\n".join(calls)


def arguments_of(text: str | None) -> Any:
    """Arguments as sent back by a client. Raises ApiError."""
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise invalid("the `arguments` of a tool call among the messages are not JSON", "messages") from None


def known(tools: Sequence[Tool], choice: Any = None) -> list[Known]:
    """Tools that may be called. choice: `tool_choice`."""
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    found = []
    for tool in tools:
        schema = tool.function.parameters or {"type": "object", "properties": {}}
        # What a grammar cannot hold is a promise only to those who asked for `strict`.
        found.append(Known(tool.function.name, schema, bool(tool.function.strict)))
    return found


def most_calls(request: ChatRequest) -> int | None:
    """How many calls an answer may have; None: as many as it likes."""
    return 1 if isinstance(request.tool_choice, NamedTool) or request.parallel_tool_calls is False else None


def grammar(form: Form, tools: Sequence[Tool], request: ChatRequest, *, required: bool) -> tuple[str, str, list[str]]:
    """The grammar of calls, the text that switches it on ("" where a call is required), and notes. Raises ApiError."""
    try:
        text, notes = calls_grammar(
            form, known(tools, request.tool_choice), required=required, parallel=most_calls(request) is None
        )
    except UsageError as error:
        raise invalid(said(error), "tools") from None
    return text, "" if required else form.trigger, notes
