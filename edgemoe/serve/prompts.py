"""From the messages of a request to what a chat template takes, and to how the answer is sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ..errors import UsageError
from ..runtime.engine.engine import Engine
from ..runtime.text.grammar import json_grammar, schema_grammar
from ..runtime.text.prompt import CHATML_END
from ..runtime.text.sampling import Sampling
from . import tools as tool_text
from .failures import invalid
from .protocol import ChatRequest, Message, Prompt, Sampled, Tool

_SEEDS = 2**32
_LEAST = 1e-4  # a temperature or top-p below is the likeliest token alone; dividing by it would leave the floats


@dataclass(frozen=True)
class Defaults:
    """What a request gets that names nothing: the server's command line."""

    sampling: Sampling
    max_tokens: int | None = None


# ---------------------------------------------------------------- messages


def chat_tokens(engine: Engine, request: ChatRequest, offered: Sequence[Tool], begun: str = "") -> list[int]:
    """The tokens of a conversation, the tools told. begun: what the answer begins with already.

    Raises ApiError, UsageError, FormatError.
    """
    native = tool_text.speaks_hermes(engine.model.chat_template)
    messages = [_plain(message, native=native) for message in request.messages]
    if native or not offered:
        return engine.chat_tokens(messages, tools=tool_text.described(offered) if offered else None, begun=begun)
    explanation = tool_text.explained(offered)
    if messages[0]["role"] == "system":
        messages[0]["content"] = f"{messages[0]['content']}\n\n{explanation}".strip()
    else:
        messages.insert(0, {"role": "system", "content": explanation})
    return engine.chat_tokens(messages, begun=begun)


def _plain(message: Message, *, native: bool) -> dict[str, Any]:
    """A message with its text in one piece. native: the template knows of calls and their results."""
    text, role = content_text(message), message.role
    if role == "tool":
        return {"role": "tool", "content": text} if native else _response(text)
    if role == "developer":
        role = "system"
    if not message.tool_calls:
        return {"role": role, "content": text}
    if native:
        calls = []
        for call in message.tool_calls:
            function = {"name": call.function.name, "arguments": tool_text.arguments_of(call.function.arguments)}
            calls.append({"type": "function", "function": function})
        return {"role": role, "content": text, "tool_calls": calls}
    return {"role": role, "content": f"{text}\n{tool_text.call_text(message)}".strip()}


def _response(text: str) -> dict[str, Any]:
    return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}


def content_text(message: Message) -> str:
    """Raises ApiError for what is not text."""
    if message.content is None:
        if message.role in ("assistant",):
            return ""
        raise invalid(f"a message of the role `{message.role}` has no content", "messages")
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type not in ("text", "refusal", "input_text") or (part.type == "text" and part.text is None):
            raise invalid(f"this server reads text only, not a part of the type `{part.type}`", "messages")
    return "".join(part.text or "" for part in message.content)


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


def sampling(request: Sampled, defaults: Defaults, engine: Engine) -> Sampling:
    """How a request wants its tokens picked. Raises ApiError."""
    base = defaults.sampling
    chosen: dict[str, Any] = {}
    for name, ours in _NAMES.items():
        value = getattr(request, name)
        if value is not None:
            chosen[ours] = value
    if chosen.get("top_p", 1) < _LEAST:
        chosen["top_p"], chosen["top_k"] = 1.0, 1
    if chosen.get("temp", 1) < _LEAST:
        chosen["temp"] = 0.0
    if request.seed is not None:
        chosen["seed"] = request.seed % _SEEDS
    if request.logit_bias:
        chosen["logit_bias"] = _bias(request.logit_bias, engine)
    if request.presence_penalty or request.frequency_penalty:
        chosen["repeat_last_n"] = engine.n_ctx  # the whole answer
    return replace(base, **chosen)


_NAMES = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}


def _bias(given: Mapping[str, float], engine: Engine) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, value in given.items():
        if not key.isascii() or not key.isdigit() or int(key) >= engine.n_vocab:
            raise invalid(f"`logit_bias` of `{key:.40}`: that is no token of this model", "logit_bias")
        # OpenAI: -100 forbids a token.
        pairs.append((int(key), float("-inf") if value <= -100 else value))
    return tuple(pairs)


def constrained(chosen: Sampling, request: ChatRequest, offered: Sequence[Tool]) -> Sampling:
    """With the grammar of the tools or of the response format. Raises ApiError."""
    form = request.response_format
    required = bool(offered) and request.tool_choice not in (None, "auto")
    parallel = request.parallel_tool_calls is not False
    if form is None or form.type == "text":
        if not offered:
            return chosen
        text, trigger = tool_text.grammar(offered, required, request.tool_choice, parallel=parallel)
        return replace(chosen, grammar=text, grammar_trigger=trigger)
    if required:
        raise invalid("a required tool call leaves no place for a `response_format`", "response_format")
    answer = _form_grammar(form)
    if offered:  # either calls or an answer in form
        calls, _ = tool_text.grammar(offered, True, None, parallel=parallel)
        answer = _either(calls, answer)
    return replace(chosen, grammar=answer, grammar_trigger="")


def _either(first: str, second: str) -> str:
    """Texts of one grammar or of the other. Rules of the same name are the same rules, but for the roots."""
    lines = dict.fromkeys([*first.splitlines()[1:], *second.splitlines()[1:]])
    roots = [text.splitlines()[0].partition("::=")[2].strip() for text in (first, second)]
    return "\n".join([f"root ::= ({roots[0]}) | ({roots[1]})", *lines])


def _form_grammar(form: Any) -> str:
    if form.type == "json_object":
        return json_grammar()
    if form.json_schema is None or form.json_schema.schema is msgspec.UNSET:
        raise invalid("`response_format` of the type `json_schema` needs `json_schema.schema`", "response_format")
    try:
        return schema_grammar(form.json_schema.schema)
    except UsageError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise invalid(f"`response_format`: {error.message}{hint}", "response_format.json_schema.schema") from None
