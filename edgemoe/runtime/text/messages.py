"""Fit a conversation to what a chat template takes: parts or text, a system role or none, roles in turn.

What a template takes is found by rendering short conversations with it. Nothing of a conversation is left out: a system
text that has no place goes before the first question, neighbours of one role become one message.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import FormatError
from . import template as templates
from .template import Refused
from .thinking import MESSAGE, Thinking, parted, thinking_of

Conversation = list[dict[str, Any]]
Names = Mapping[str, Any]
"""What the template finds beside `messages`."""

PROBE_NAME, PROBE_KEY, PROBE_VALUE = "probe_name", "probe_key", "probe value"
_QUESTION, _SYSTEM, _RESULT = "Probe of a question", "Probe of a system text", "Probe of a result"
_PROBED = 8  # templates that are remembered


def fitted(template: str, messages: Sequence[Mapping[str, Any]], names: Names) -> str:
    """The prompt for a conversation. Raises Refused with the template's first words, FormatError."""
    given = (
        [_without_channels(dict(message)) for message in messages]
        if thinking_of(template).channels
        else list(map(dict, messages))
    )
    if any(len(message.get("tool_calls") or ()) > 1 for message in given) and not _takes_several(template):
        given = one_call_each(given)
    if any(message.get("tool_calls") for message in given) and not _takes_objects(template):
        given = [_with_text_arguments(message) for message in given]
    if any(message["role"] == "system" for message in given[:1]) and not _takes_system(template):
        given = fold_system(given)
    if any(message["role"] == "system" for message in given[1:]) and not _takes_late_system(template):
        given = [*given[:1], *fold_system(given[1:])]
    first: Refused | None = None
    for form in _forms(given):
        try:
            prompt = _run(template, form, names)
            if not _shows_system(prompt, form):  # some leave it out in the middle of calls
                folded = fold_system(form)
                again = _run(template, folded, names)
                prompt = again if _shows_system(again, form) else prompt
            return prompt
        except Refused as refusal:
            first = first or refusal
    assert first is not None
    raise first


def _forms(given: Conversation) -> Iterator[Conversation]:
    """The conversation, then others that say the same for templates that refuse it."""
    yield given
    at = given
    for change in _CHANGES:
        changed = change(at)
        if changed != at:
            at = changed
            yield at


def _shows_system(prompt: str, messages: Conversation) -> bool:
    """Whether the longest line of each system text is in a prompt."""
    texts = [str(message["content"]) for message in messages if message["role"] == "system"]
    return all(max(map(str.strip, text.splitlines() or [""]), key=len) in prompt for text in texts)


def _run(template: str, messages: Conversation, names: Names) -> str:
    messages = _in_parts(template, messages)
    try:
        return templates.run(template, {**names, "messages": messages})
    except templates.Stopped:
        raise
    except FormatError:
        if names.get("tools") is not None:
            raise
        # Some walk over the tools without asking whether there are any.
        return templates.run(template, {**names, "messages": messages, "tools": [], "functions": "[]", "datetime": ""})


# ---------------------------------------------------------------- other forms of a conversation


def merge_neighbours(messages: Conversation) -> Conversation:
    """Neighbours of one role as one message; calls and results stay apart."""
    merged: Conversation = []
    for message in messages:
        last = merged[-1] if merged else {}
        simple = "tool_calls" not in message and "tool_calls" not in last and message["role"] != "tool"
        if simple and last.get("role") == message["role"]:
            merged[-1] = {**last, "content": _joined(last["content"], message["content"])}
        else:
            merged.append(message)
    return merged


def fold_system(messages: Conversation) -> Conversation:
    """System texts before the question that follows them."""
    folded: Conversation = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif waiting and message["role"] == "user":
            folded.append({**message, "content": _joined(*waiting, message["content"])})
            waiting = []
        else:
            folded.append(message)
    return [*folded, {"role": "user", "content": _joined(*waiting)}] if waiting else folded


def _system_first(messages: Conversation) -> Conversation:
    """One system message, at the beginning."""
    texts = [message["content"] for message in messages if message["role"] == "system"]
    if not texts:
        return messages
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": _joined(*texts)}, *rest]


def _short_ids(messages: Conversation) -> Conversation:
    """Ids of calls as nine letters and digits, which Mistral's templates insist on."""

    def short(name: Any) -> str:
        text = str(name)
        if len(text) == 9 and text.isalnum():
            return text
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:9]

    changed = []
    for message in messages:
        if message.get("tool_calls"):
            message = {
                **message,
                "tool_calls": [{**call, "id": short(call.get("id", ""))} for call in message["tool_calls"]],
            }
        if message["role"] == "tool":
            message = {**message, "tool_call_id": short(message.get("tool_call_id", ""))}
        changed.append(message)
    return changed


def one_call_each(messages: Conversation) -> Conversation:
    """Each call as a message of its own, with its result behind it."""
    changed: Conversation = []
    i = 0
    while i < len(messages):
        message = messages[i]
        i += 1
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            changed.append(message)
            continue
        results = []
        while i < len(messages) and messages[i]["role"] == "tool":
            results.append(messages[i])
            i += 1
        for n, call in enumerate(calls):
            said = message if n == 0 else {**message, "content": ""}
            changed.append({**said, "tool_calls": [call]})
            named = [result for result in results if result.get("tool_call_id") == call.get("id")]
            mine = named[:1] or results[:1]
            results = [result for result in results if result not in mine]
            changed += mine
        changed += results
    return changed


def _without_channels(message: dict[str, Any]) -> dict[str, Any]:
    """An answer of gpt-oss as its template wants it: no marks, the thinking apart, and only before a call."""
    content = message.get("content")
    if message["role"] != "assistant":
        return message
    if isinstance(content, str) and MESSAGE in content:
        thought, answer = parted(content, Thinking(channels=True))
        message = {**message, "content": answer, "reasoning_content": message.get("reasoning_content") or thought}
    if message.get("reasoning_content") and not (message.get("tool_calls") and message["content"]):
        message = {**message, "thinking": message["reasoning_content"]}
    return message


def _joined(*texts: Any) -> str:
    return "\n\n".join(str(text) for text in texts if text)


_CHANGES: tuple[Callable[[Conversation], Conversation], ...] = (
    _short_ids,
    one_call_each,
    _system_first,
    merge_neighbours,
    lambda messages: merge_neighbours(fold_system(messages)),
)


def _in_parts(template: str, messages: Conversation) -> Conversation:
    """With the text of each message in parts where a template takes that alone."""
    return [_with_parts(message) for message in messages] if _takes_parts(template) else messages


def _with_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}


# ---------------------------------------------------------------- what a template takes

_NAMES: dict[str, Any] = {
    "bos_token": "", "eos_token": "", "add_generation_prompt": True, "tools": None, "documents": None
}  # fmt: skip


def _tried(template: str, messages: Conversation, **names: Any) -> str:
    """The prompt of a short conversation, "" where the template fails. Raises Stopped."""
    try:
        return templates.run(template, {**_NAMES, **names, "messages": messages})
    except templates.Stopped:
        raise
    except (Refused, FormatError):
        return ""


@functools.lru_cache(_PROBED)
def _takes_parts(template: str) -> bool:
    """Whether a template shows text only in parts."""
    if "content" not in template:
        return False
    question = {"role": "user", "content": _QUESTION}
    return _QUESTION not in _tried(template, [question]) and _QUESTION in _tried(template, [_with_parts(question)])


@functools.lru_cache(_PROBED)
def _takes_system(template: str) -> bool:
    question: dict[str, Any] = {"role": "user", "content": _QUESTION}
    system: dict[str, Any] = {"role": "system", "content": _SYSTEM}
    both = _tried(template, _in_parts(template, [system, question]))
    # One that shows no question either says nothing about system texts.
    return _SYSTEM in both or _QUESTION not in _tried(template, _in_parts(template, [question]))


@functools.lru_cache(_PROBED)
def _takes_late_system(template: str) -> bool:
    """Whether a system text that comes later is shown, or refused aloud."""
    question: dict[str, Any] = {"role": "user", "content": _QUESTION}
    answer: dict[str, Any] = {"role": "assistant", "content": "Probe of an answer"}
    system: dict[str, Any] = {"role": "system", "content": _SYSTEM}
    text = _tried(template, _in_parts(template, [question, answer, system, question]))
    return not text or _SYSTEM in text


@functools.lru_cache(_PROBED)
def _takes_several(template: str) -> bool:
    """Whether a message may hold several calls."""
    return shown_calls(template).count(PROBE_VALUE) != 1 or shown_calls(template, n_call=2).count(PROBE_VALUE) == 2


@functools.lru_cache(_PROBED)
def _takes_objects(template: str) -> bool:
    """Whether arguments of earlier calls are objects to a template, not their JSON text."""
    shown = shown_calls(template, as_text=False)
    if PROBE_VALUE in shown and f"'{PROBE_VALUE}'" not in shown:
        return True
    as_text = shown_calls(template, as_text=True)
    return PROBE_VALUE not in as_text or f'\\"{PROBE_KEY}' in as_text


@functools.lru_cache(8 * _PROBED)
def shown_calls(template: str, *, as_text: bool | None = None, n_call: int = 1, calls: str = "") -> str:
    """How a template shows an assistant that calls tools, between the question and the result; "" if it does not.

    as_text: give the arguments as JSON text; None: as the template wants it. calls: JSON of [name, arguments] each, as
    others than n_call of the probe's own.
    """
    if "tool_calls" not in template:
        return ""
    as_text = not _takes_objects(template) if as_text is None else as_text
    given = json.loads(calls) if calls else [(PROBE_NAME, {PROBE_KEY: PROBE_VALUE})] * n_call
    made = [
        {"type": "function", "id": f"call0000{i}", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(given)
    ]
    asked: Conversation = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": "", "tool_calls": made},
        *({"role": "tool", "content": _RESULT, "tool_call_id": call["id"], "name": PROBE_NAME} for call in made),
    ]
    if as_text:
        asked = [_with_text_arguments(message) for message in asked]
    text = _tried(template, _in_parts(template, asked), tools=[PROBE_TOOL])
    return text.partition(_QUESTION)[2].partition(_RESULT)[0] or text


PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": PROBE_NAME,
        "description": "a tool",
        "parameters": {"type": "object", "properties": {PROBE_KEY: {"type": "string"}}, "required": [PROBE_KEY]},
    },
}


@functools.lru_cache(_PROBED)
def shows_tools(template: str) -> bool:
    """Whether a template tells the model of the tools that it is given."""
    if "tools" not in template:
        return False
    question: dict[str, Any] = {"role": "user", "content": _QUESTION}
    return PROBE_KEY in _tried(template, _in_parts(template, [question]), tools=[PROBE_TOOL])
