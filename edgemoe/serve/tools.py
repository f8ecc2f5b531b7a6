"""Tools: how a model is told about them, how its calls are forced into form, and how they are read out of its text.

The form is Hermes', which Qwen and many others were trained on:
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`. A chat template that speaks it is given the tools as they
are; any other is given them in the system prompt, with that form explained. A grammar makes every call well-formed:
from the first token where a call is required, else from where the model writes `<tool_call>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..errors import UsageError
from ..runtime.text.grammar import JSON_RULES, Converter, literal, rules_text
from .failures import invalid
from .protocol import ChatRequest, Message, NamedTool, Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_EXPLANATION = """You can call functions. Each line between <tools> and </tools> describes one:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments as JSON, like this:
<tool_call>
{{"name": "NAME", "arguments": {{"KEY": "VALUE"}}}}
</tool_call>
Its result is then given to you between <tool_response> and </tool_response>."""


@dataclass(frozen=True)
class Call:
    """A call that a model made. arguments: JSON text of an object."""

    name: str
    arguments: str


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


def speaks_hermes(template: str | None) -> bool:
    """Whether a chat template shows tools, and asks for calls, in the form that is read here."""
    return bool(template and re.search(r"\btools\b", template) and OPEN in template and "<function=" not in template)


def described(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates expect them."""
    return [msgspec.to_builtins(tool) for tool in tools]


def explained(tools: Sequence[Tool]) -> str:
    """Tools in words, for the system prompt."""
    lines = []
    for tool in tools:
        function = {key: value for key, value in msgspec.to_builtins(tool.function).items() if value is not None}
        function.pop("strict", None)
        lines.append(json.dumps(function, ensure_ascii=False))
    return _EXPLANATION.format(tools="\n".join(lines))


def call_text(message: Message) -> str:
    """An assistant's earlier calls as it wrote them."""
    calls = []
    for call in message.tool_calls or []:
        arguments = json.dumps(arguments_of(call.function.arguments), ensure_ascii=False)
        calls.append(f'{OPEN}\n{{"name": {json.dumps(call.function.name)}, "arguments": {arguments}}}\n{CLOSE}')
    return "\n".join(calls)


def arguments_of(text: str | None) -> Any:
    """Arguments as sent back by a client. Raises ApiError."""
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise invalid("the `arguments` of a tool call among the messages are not JSON", "messages") from None


def grammar(tools: Sequence[Tool], required: bool, choice: Any, *, parallel: bool) -> tuple[str, str]:
    """The grammar of calls, and the text that switches it on ("" where a call is required). Raises ApiError."""
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    rules: list[str] = []
    for i, tool in enumerate(tools):
        schema = tool.function.parameters or {"type": "object", "properties": {}}
        try:
            # What a grammar cannot hold is a promise only to those who asked for `strict`.
            converter = Converter(schema, strict=bool(tool.function.strict), prefix=f"t{i}")
            arguments = converter.rule({"type": "object", **schema}, "arguments")
        except UsageError as error:
            raise invalid(f"the parameters of `{tool.function.name}`: {error.message}", f"tools[{i}]") from None
        rules += converter.own_lines()
        start = literal(f'{{"name": {json.dumps(tool.function.name)}, "arguments": ')
        rules.append(f'call-{i} ::= {start} {arguments} "}}"')
    rules.append("call ::= " + " | ".join(f"call-{i}" for i in range(len(tools))))
    opening, closing = f'{literal(OPEN)} "\\n"', f'"\\n" {literal(CLOSE)}'
    more = f'("\\n" {opening} call {closing})*' if parallel else ""
    begin = opening if required else '"\\n"'
    root = f"root ::= {begin} call {closing} {more}"
    return "\n".join([root, *rules, *rules_text(JSON_RULES)]), "" if required else OPEN


class CallReader:
    """Splits a model's text into words and calls as it comes. Text that may be the beginning of a call is held back."""

    def __init__(self) -> None:
        self.n_call = 0
        self._held = ""
        self._inside = False

    def feed(self, text: str) -> Iterator[str | Call]:
        self._held += text
        while True:
            if self._inside:
                inside, found, rest = self._held.partition(CLOSE)
                if not found:
                    return
                yield self._call(inside)
                self._held, self._inside = rest, False
            else:
                before, found, rest = self._held.partition(OPEN)
                if found:
                    if before.strip():
                        yield before
                    self._held, self._inside = rest, True
                    continue
                keep = next((n for n in range(len(OPEN) - 1, 0, -1) if self._held.endswith(OPEN[:n])), 0)
                ready = self._held[: len(self._held) - keep]
                if ready and (ready.strip() or not self.n_call):  # blanks between calls are no words
                    yield ready
                    self._held = self._held[len(ready) :]
                return

    def finish(self) -> Iterator[str | Call]:
        """What was held back. Half a call is given as the text that it is, unless it only lacks its end mark."""
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            yield self._call(held)
        elif held.strip() and not (self.n_call and OPEN.startswith(held.strip())):  # a next call that barely began
            yield held

    def _call(self, text: str) -> str | Call:
        try:
            found = json.loads(text)
            name, arguments = found["name"], found.get("arguments", found.get("parameters", {}))
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return OPEN + text
        self.n_call += 1
        return Call(name, json.dumps(arguments, ensure_ascii=False))
