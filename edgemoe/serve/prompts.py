"""From the messages of a request to what a chat template takes, and to the grammar that the answer follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ..errors import UsageError
from ..runtime.engine.engine import Engine
from ..runtime.text.grammar import json_grammar, schema_grammar
from ..runtime.text.prompt import CHATML_END, RESERVED, ChatPrompt, first_rendering_bytes
from ..runtime.text.sampling import Sampling
from ..runtime.text.thinking import Thinking
from . import forms
from . import tools as tool_text
from .calls import after_thinking, behind, either
from .failures import invalid, said
from .forms import Form
from .protocol import ChatRequest, ImageUrl, Message, Part, Prompt, ResponseFormat, Sampled, Tool

_PLAIN = Thinking()


@dataclass(frozen=True)
class Defaults:
    """What a request gets that names nothing: the server's command line says it, else the model.

    said: fields of `Sampling`.
    """

    said: Mapping[str, Any]
    max_tokens: int | None = None


# ---------------------------------------------------------------- messages


def form_of(engine: Engine, offered: Sequence[Tool]) -> Form:
    """How the model calls tools, HERMES where it must be told. Raises FormatError."""
    template = engine.model.chat_template
    with engine.room(first_rendering_bytes(template) if offered else 0, "the chat template"):
        form = forms.form_of(template) if offered else forms.HERMES
        # A form that cannot be told in words is spoken only by those whose template tells it.
        return form if form is forms.HERMES or forms.told_by(template) or forms.example(form) else forms.HERMES


def chat_prompt(
    engine: Engine, request: ChatRequest, offered: Sequence[Tool], form: Form, begun: str = ""
) -> ChatPrompt:
    """The tokens of a conversation, the tools told. begun: what the answer begins with already.

    Raises ApiError, UsageError, FormatError.
    """
    template = engine.model.chat_template
    called = any(message.tool_calls or message.role == "tool" for message in request.messages)
    native = (called and forms.form_of(template).native) or (bool(offered) and form.native)
    names = _names_of_calls(request.messages)
    messages = [_plain(message, names, native=native) for message in request.messages]
    variables = template_variables(request)
    if not offered or (form.native and forms.told_by(template)):
        told = tool_text.described(offered) if offered else None
        return engine.chat_prompt(messages, tools=told, variables=variables, begun=begun)
    explanation = tool_text.explained(offered, form)
    if messages[0]["role"] == "system":
        messages[0]["content"] = f"{messages[0]['content']}\n\n{explanation}".strip()
    else:
        messages.insert(0, {"role": "system", "content": explanation})
    return engine.chat_prompt(messages, variables=variables, begun=begun)


def shown_tokens(engine: Engine, request: ChatRequest, offered: Sequence[Tool], begun: str = "") -> list[int]:
    """`chat_prompt`'s tokens alone."""
    return chat_prompt(engine, request, offered, form_of(engine, offered), begun).tokens


def template_variables(request: ChatRequest) -> dict[str, Any]:
    """What a request tells the chat template beside messages and tools. Raises ApiError."""
    variables = dict(request.chat_template_kwargs or {})
    taken = sorted(RESERVED & variables.keys())
    if taken:
        raise invalid(f"`chat_template_kwargs` cannot set `{taken[0]}`", "chat_template_kwargs")
    effort = request.reasoning_effort
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
        if effort == "none":
            variables.setdefault("enable_thinking", False)
    if request.enable_thinking is not None:
        variables.setdefault("enable_thinking", request.enable_thinking)
    if "enable_thinking" in variables:  # the other names that templates give it
        variables.setdefault("thinking", variables["enable_thinking"])
        variables.setdefault("thinking_mode", "enabled" if variables["enable_thinking"] else "disabled")
    return variables


def _names_of_calls(messages: Sequence[Message]) -> dict[str, str]:
    return {call.id: call.function.name for message in messages for call in message.tool_calls or () if call.id}


def _plain(message: Message, names: Mapping[str, str], *, native: bool) -> dict[str, Any]:
    """A message with its text in one piece. native: the template knows of calls and their results."""
    role = message.role
    if role == "user" and isinstance(message.content, list):
        return {"role": role, "content": _content(message.content)}
    text = content_text(message)
    if role == "tool":
        if not native:
            return _response(text)
        known = {
            "tool_call_id": message.tool_call_id or "",
            "name": message.name or names.get(message.tool_call_id or ""),
        }
        return {"role": "tool", "content": text, **{key: value for key, value in known.items() if value is not None}}
    if role == "developer":
        role = "system"
    thought = message.reasoning_content or message.reasoning
    plain: dict[str, Any] = {"role": role, "content": text}
    if thought and role == "assistant":
        plain["reasoning_content"] = thought
    if not message.tool_calls:
        return plain
    if native:
        calls = []
        for call in message.tool_calls:
            function = {"name": call.function.name, "arguments": tool_text.arguments_of(call.function.arguments)}
            calls.append({"type": "function", "id": call.id, "function": function})
        return {**plain, "tool_calls": calls}
    return {**plain, "content": f"{text}\n{tool_text.call_text(message)}".strip()}


def _response(text: str) -> dict[str, Any]:
    return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """What `Engine.chat_prompt` takes: a text, or with pictures its parts. Raises ApiError."""
    if not any(part.type == "image_url" for part in parts):
        return _joined(parts)
    found: list[dict[str, Any]] = []
    for part in parts:
        if part.type != "image_url":
            found.append({"type": "text", "text": _joined([part])})
            continue
        url = part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url
        if url is None:
            raise invalid("a part of the type `image_url` has no `image_url`", "messages")
        found.append({"type": "image_url", "image_url": url})
    return found


def content_text(message: Message) -> str:
    """Raises ApiError for what is not text."""
    if message.content is None:
        if message.role in ("assistant",):
            return ""
        raise invalid(f"a message of the role `{message.role}` has no content", "messages")
    if isinstance(message.content, str):
        return message.content
    return _joined(message.content)


def _joined(parts: Sequence[Part]) -> str:
    for part in parts:
        if part.type not in ("text", "refusal", "input_text") or (part.type == "text" and part.text is None):
            raise invalid(f"no part of the type `{part.type}` is read here, in this role", "messages")
    return "".join(part.text or "" for part in parts)


def texts_or_tokens(prompt: Prompt, param: str) -> list[str | list[int]]:
    """The prompts of a completion request or the inputs of an embedding request. Raises ApiError."""
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [[item for item in prompt if isinstance(item, int)]]
    if kinds == {str} or kinds == {list}:
        return [item for item in prompt if not isinstance(item, int)]
    raise invalid(f"`{param}` mixes texts and tokens", param)


def tokens_of(engine: Engine, prompt: str | list[int], param: str) -> list[int]:
    """Raises ApiError for tokens that do not exist."""
    if isinstance(prompt, str):
        return engine.tokenize(prompt)
    wrong = next((token for token in prompt if not 0 <= token < engine.n_vocab), None)
    if wrong is not None:
        raise invalid(f"token {wrong} is not in the vocabulary of {engine.n_vocab:,}", param)
    return prompt


# ---------------------------------------------------------------- sampling


def stops(request: Sampled, engine: Engine | None = None) -> tuple[str, ...]:
    """engine: add the end mark that a model without a template needs in a chat. Raises ApiError."""
    given = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if "" in given:
        raise invalid("an empty stop string would end every answer at once", "stop")
    return (*given, CHATML_END) if engine and engine.model.chat_template is None else given


def constrained(
    chosen: Sampling,
    request: ChatRequest,
    offered: Sequence[Tool],
    form: Form = forms.HERMES,
    thinking: Thinking = _PLAIN,
) -> tuple[Sampling, tuple[str, ...]]:
    """With the grammar of the tools or of the response format, and what of their schemas is not held. Raises ApiError.

    thinking: comes before what the grammar holds.
    """
    wanted = request.response_format
    required = bool(offered) and request.tool_choice not in (None, "auto")
    if wanted is None or wanted.type == "text":
        if not offered:
            return chosen, ()
        text, trigger, notes = tool_text.grammar(form, offered, request, required=required)
        text = text if trigger else after_thinking(text, thinking)
        return replace(chosen, grammar=text, grammar_trigger=trigger), tuple(notes)
    if required:
        raise invalid("a required tool call leaves no place for a `response_format`", "response_format")
    answer, notes = _form_grammar(wanted)
    if thinking.channels:
        answer = behind("<|channel|>final<|message|>", answer)
    if offered:  # either calls or an answer in form
        calls, _, more = tool_text.grammar(form, offered, request, required=True)
        answer, notes = either(calls, answer), [*notes, *more]
    return replace(chosen, grammar=after_thinking(answer, thinking), grammar_trigger=""), tuple(notes)


def _form_grammar(wanted: ResponseFormat) -> tuple[str, list[str]]:
    """Of `json_object`, with llama-server's `schema` or without, and of `json_schema`."""
    schema, strict, param = wanted.schema, None, "response_format.schema"
    if wanted.type == "json_schema":
        inner = wanted.json_schema
        if inner is not None and inner.schema is not msgspec.UNSET:
            schema, strict, param = inner.schema, inner.strict, "response_format.json_schema.schema"
        elif schema is msgspec.UNSET:
            raise invalid("`response_format` of the type `json_schema` needs `json_schema.schema`", "response_format")
    if schema is msgspec.UNSET or schema is None:
        return json_grammar(), []
    notes: list[str] = []
    try:
        return schema_grammar(schema, strict=bool(strict), notes=notes), notes
    except UsageError as error:
        raise invalid(f"`response_format`: {said(error)}", param) from None
