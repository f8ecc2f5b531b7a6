"""Answers in OpenAI's shape: the classes that are encoded, and how events become them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from . import answers
from .answers import Called, Event, Finished, LogProb, Started, Thoughts, Used, Words

_LEAST = -9999.0  # OpenAI's number for "never"; JSON has no infinity

FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct):
    """Parallel lists, one item a token. text_offset: where it begins in the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CallFunction(Struct):
    name: str
    arguments: str


class CallOut(Struct):
    id: str
    function: CallFunction
    type: str = "function"
    index: int | UnsetType = UNSET


class PromptDetails(Struct):
    cached_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AssistantMessage(Struct):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallOut] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    object: str = "chat.completion"


class Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallOut] | UnsetType = UNSET


class ChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: str = "chat.completion.chunk"


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(Struct):
    """A whole answer, or with `stream` a piece of one."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"


class EmbeddingItem(Struct):
    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Struct):
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


class ModelCard(Struct):
    """context_length: tokens that the model was trained for. loaded: whether it is in memory now."""

    id: str
    created: int
    context_length: int
    loaded: bool
    object: str = "model"
    owned_by: str = "edgemoe"


class ModelList(Struct):
    data: list[ModelCard]
    object: str = "list"


class ErrorBody(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Struct):
    error: ErrorBody


class Frame:
    """What all pieces of one answer have in common."""

    def __init__(self, prefix: str, model: str, fingerprint: str) -> None:
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = model
        self.fingerprint = fingerprint


def usage_of(used: Used) -> Usage:
    total = used.n_prompt + used.n_completion
    return Usage(used.n_prompt, used.n_completion, total, PromptDetails(used.n_cached))


# ---------------------------------------------------------------- chat


def chat_completion(frame: Frame, events: Iterable[Event]) -> ChatCompletion:
    """All events of an answer as one object."""
    texts: dict[int, list[str]] = {}
    thoughts: dict[int, list[str]] = {}
    calls: dict[int, list[CallOut]] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    choices: list[ChatChoice] = []
    usage = usage_of(Used(0, 0, 0))
    for event in events:
        if isinstance(event, Words):
            texts.setdefault(event.index, []).append(event.text)
            logprobs.setdefault(event.index, []).extend(map(_chat_logprob, event.logprobs))
        elif isinstance(event, Thoughts):
            thoughts.setdefault(event.index, []).append(event.text)
            logprobs.setdefault(event.index, []).extend(map(_chat_logprob, event.logprobs))
        elif isinstance(event, Called):
            calls.setdefault(event.index, []).append(_call(event))
        elif isinstance(event, Finished):
            i = event.index
            text: str | None = "".join(texts.get(i, ()))
            message = AssistantMessage(text or None if i in calls else text, tool_calls=calls.get(i, UNSET))
            if i in thoughts:
                message.reasoning_content = "".join(thoughts[i])
            told = ChatLogprobs(logprobs[i]) if logprobs.get(i) else None
            choices.append(ChatChoice(i, message, told, _reason(event)))
        elif isinstance(event, Used):
            usage = usage_of(event)
    return ChatCompletion(frame.id, frame.created, frame.model, choices, usage, frame.fingerprint)


def chat_chunks(frame: Frame, event: Event, *, with_usage: bool) -> Iterator[ChatChunk]:
    """An event as pieces of a stream."""

    def chunk(*choices: ChunkChoice) -> ChatChunk:
        usage = None if with_usage else UNSET
        return ChatChunk(frame.id, frame.created, frame.model, list(choices), frame.fingerprint, usage)

    if isinstance(event, Started):
        for i in range(event.n_choice):
            yield chunk(ChunkChoice(i, Delta("assistant", "")))
    elif isinstance(event, (Words, Thoughts)):
        told = ChatLogprobs([_chat_logprob(one) for one in event.logprobs]) if event.logprobs else None
        more = Delta(content=event.text) if isinstance(event, Words) else Delta(reasoning_content=event.text)
        yield chunk(ChunkChoice(event.index, more, told))
    elif isinstance(event, Called):
        call = _call(event)
        call.index = event.number
        yield chunk(ChunkChoice(event.index, Delta(tool_calls=[call])))
    elif isinstance(event, Finished):
        yield chunk(ChunkChoice(event.index, Delta(), None, _reason(event)))
    elif with_usage:
        last = chunk()
        last.usage = usage_of(event)
        yield last


def _call(event: Called) -> CallOut:
    return CallOut(f"call_{secrets.token_hex(12)}", CallFunction(event.call.name, event.call.arguments))


def _reason(event: Finished) -> FinishReason:
    if event.reason == "tool_calls":
        return "tool_calls"
    return "length" if event.reason == "length" else "stop"


def _chat_logprob(one: LogProb) -> TokenLogprob:
    top = [TopLogprob(_text(piece), max(value, _LEAST), list(piece)) for piece, value in one.top]
    return TokenLogprob(_text(one.piece), max(one.logprob, _LEAST), list(one.piece), top)


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


# ---------------------------------------------------------------- completions


class CompletionBuilder:
    """Keeps where each choice's text has come to, for `text_offset`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._lengths: dict[int, int] = {}

    def whole(self, events: Iterable[Event]) -> Completion:
        """All events of an answer as one object."""
        choices: dict[int, CompletionChoice] = {}
        usage: Usage | None = None
        for event in events:
            for piece in self.pieces(event, with_usage=True):
                usage = piece.usage if isinstance(piece.usage, Usage) else usage
                for choice in piece.choices:
                    known = choices.setdefault(choice.index, CompletionChoice(choice.index, ""))
                    known.text += choice.text
                    known.finish_reason = choice.finish_reason or known.finish_reason
                    known.logprobs = _joined(known.logprobs, choice.logprobs)
        frame = self._frame
        ordered = [choices[i] for i in sorted(choices)]
        return Completion(frame.id, frame.created, frame.model, ordered, frame.fingerprint, usage)

    def pieces(self, event: Event, *, with_usage: bool) -> Iterator[Completion]:
        """An event as pieces of a stream."""
        if isinstance(event, Started):
            for i, text in enumerate(event.echoes):
                yield self._piece(self._choice(i, text), with_usage=with_usage)
        elif isinstance(event, Words):
            yield self._piece(self._choice(event.index, event.text, event.logprobs), with_usage=with_usage)
        elif isinstance(event, Finished):
            yield self._piece(CompletionChoice(event.index, "", None, _reason(event)), with_usage=with_usage)
        elif isinstance(event, answers.Used) and with_usage:
            last = self._piece(with_usage=True)
            last.usage = usage_of(event)
            yield last

    def _piece(self, *choices: CompletionChoice, with_usage: bool) -> Completion:
        frame, usage = self._frame, None if with_usage else UNSET
        return Completion(frame.id, frame.created, frame.model, list(choices), frame.fingerprint, usage)

    def _choice(self, index: int, text: str, logprobs: tuple[LogProb, ...] = ()) -> CompletionChoice:
        begin = self._lengths.get(index, 0)
        self._lengths[index] = begin + len(text)
        told = None
        if logprobs:
            told = CompletionLogprobs(
                [_text(one.piece) for one in logprobs],
                [max(one.logprob, _LEAST) for one in logprobs],
                [{_text(piece): max(value, _LEAST) for piece, value in one.top} for one in logprobs],
                [begin for _ in logprobs],
            )
        return CompletionChoice(index, text, told)


def _joined(first: CompletionLogprobs | None, second: CompletionLogprobs | None) -> CompletionLogprobs | None:
    if first is None or second is None:
        return first or second
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )
