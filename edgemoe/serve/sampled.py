"""What a request says of how its answer is picked, and how long it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from ..errors import UsageError
from ..runtime.engine.engine import Engine
from ..runtime.text.grammar import schema_grammar
from ..runtime.text.sampling import MAX_SEED, Sampling
from . import prompts
from .failures import invalid, said
from .prompts import Defaults
from .protocol import ChatRequest, JsonSchema, Message, ResponseFormat, Sampled

# What ours are called: as on llama.cpp's command line.
_NAMES = {"temperature": "temp"} | {
    name: name
    for name in (
        "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "typical_p",
        "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "dry_allowed_length", "mirostat",
        "mirostat_tau", "mirostat_eta", "dynatemp_range", "dynatemp_exponent", "ignore_eos",
    )
}  # fmt: skip
_SEEDS = MAX_SEED + 1
_LEAST = 1e-4  # a temperature or top-p below is the likeliest token alone; dividing by it would leave the floats


def normalised(request: ChatRequest) -> ChatRequest:
    """With schemas in the one place where they are read."""
    form = request.response_format
    schema = form.schema if form and form.type == "json_object" else None
    if request.json_schema is not None:
        if form is not None and form.type != "text":
            raise invalid("`json_schema` and `response_format` both say a form", "json_schema")
        schema = request.json_schema
    if not schema:
        return request
    form = ResponseFormat("json_schema", JsonSchema(schema=schema))
    return msgspec.structs.replace(request, response_format=form, json_schema=None)


def limit(request: Sampled, first: int | None, defaults: Defaults, *, otherwise: int | None = None) -> int | None:
    """Most tokens of an answer; None: as many as come. first: another name for it, which goes before."""
    given = next((n for n in (first, request.max_tokens, request.n_predict) if n is not None), None)
    if given is None:
        return defaults.max_tokens or otherwise
    return None if given < 0 else given


def continued(request: ChatRequest) -> tuple[ChatRequest, str]:
    """The request without an assistant's message at its end, and that message's text, which the answer goes on with."""
    last: Message = request.messages[-1]
    if request.continue_final_message and request.add_generation_prompt:
        raise invalid("`continue_final_message` and `add_generation_prompt` contradict one another", "messages")
    wanted = request.continue_final_message
    if wanted is None:
        wanted = request.add_generation_prompt is not True
    if last.role != "assistant" or last.tool_calls or not wanted or len(request.messages) == 1:
        if request.continue_final_message and last.role != "assistant":
            raise invalid("`continue_final_message` needs a message of the assistant at the end", "messages")
        return request, ""
    return msgspec.structs.replace(request, messages=request.messages[:-1]), prompts.content_text(last)


def sampling(request: Sampled, defaults: Defaults, engine: Engine) -> Sampling:
    """How a request wants its tokens picked, by other servers' names and values too. Raises ApiError."""
    chosen: dict[str, Any] = {
        ours: value for name, ours in _NAMES.items() if (value := getattr(request, name)) is not None
    }
    if request.repetition_penalty is not None:
        chosen.setdefault("repeat_penalty", request.repetition_penalty)
    if chosen.get("top_k", 0) < 0:
        chosen["top_k"] = 0
    if chosen.get("typical_p") == 0:
        chosen["typical_p"] = 1.0
    if chosen.get("top_p", 1) < _LEAST:
        chosen["top_p"], chosen["top_k"] = 1.0, 1
    if chosen.get("temp", 1) < _LEAST:
        chosen["temp"] = 0.0
    if request.seed is not None:
        chosen["seed"] = None if request.seed == -1 else request.seed % _SEEDS  # -1 is llama.cpp's word for: draw one
    if request.logit_bias:
        chosen["logit_bias"] = _bias(request.logit_bias, engine)
    if request.presence_penalty or request.frequency_penalty:
        chosen["repeat_last_n"] = engine.n_ctx  # the whole answer
    if request.repeat_last_n is not None:
        chosen["repeat_last_n"] = _looked_back(request.repeat_last_n, engine)
    chosen["dry_last_n"] = _looked_back(request.dry_penalty_last_n, engine)
    if request.dry_sequence_breakers is not None:
        chosen["dry_breakers"] = tuple(request.dry_sequence_breakers)
    if request.top_n_sigma is not None:
        chosen["top_n_sigma"] = max(0.0, request.top_n_sigma)
    return engine.model.recommended.but(**{**defaults.said, **chosen})


def _bias(given: Mapping[str, float], engine: Engine) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, value in given.items():
        if not key.isascii() or not key.isdigit() or int(key) >= engine.n_vocab:
            raise invalid(f"`logit_bias` of `{key:.40}`: that is no token of this model", "logit_bias")
        # OpenAI: -100 forbids a token.
        pairs.append((int(key), float("-inf") if value <= -100 else value))
    return tuple(pairs)


def _looked_back(n_token: int | None, engine: Engine) -> int:
    """No further than the context goes; -1 is all of it."""
    return engine.n_ctx if n_token is None or n_token < 0 else min(n_token, engine.n_ctx)


def with_grammar(chosen: Sampling, request: Sampled) -> Sampling | None:
    """With the request's own grammar; None where it has none. Raises ApiError."""
    if not request.grammar:
        if request.json_schema and not isinstance(request, ChatRequest):
            return replace(chosen, grammar=_schema_grammar(request.json_schema))
        return None
    form = request.response_format if isinstance(request, ChatRequest) else None
    tools = request.tools if isinstance(request, ChatRequest) and request.tool_choice != "none" else None
    if tools or request.json_schema or (form and form.type != "text"):
        raise invalid("`grammar` beside tools or another form: an answer can follow one only", "grammar")
    return replace(chosen, grammar=request.grammar)


def _schema_grammar(schema: dict[str, Any]) -> str:
    try:
        return schema_grammar(schema)
    except UsageError as error:
        raise invalid(f"`json_schema`: {said(error)}", "json_schema") from None
