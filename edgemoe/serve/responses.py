"""Answers in OpenAI's shape: the classes that are encoded, and how events become them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from .events import Arguments, Called, Calling, Event, Finished, Scored, Started, Thoughts, Used, Words
from .lossy import Lossy
from .scoring import LogProb
from .timing import Timings

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
    """Parallel lists, one item a token. text_offset: where it begins in the choice's text.

    A prompt's first token has no log-probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CallFunction(Struct):
    name: str
    arguments: str


class CallOut(Struct):
    id: str
    function: CallFunction
    type: str = "function"


class FunctionDelta(Struct):
    arguments: str
    name: str | UnsetType = UNSET


class CallDelta(Struct):
    """A call that begins (id, type, name), or more of its arguments."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class PromptDetails(Struct):
    cached_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    lossy: Lossy | UnsetType = UNSET


class AssistantMessage(Struct):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallOut] | UnsetType = UNSET


class PromptProgress(Struct):
    """Of a prompt that is being computed, in tokens, as llama.cpp tells it. cache: those that were there already."""

    total: int
    cache: int
    processed: int
    time_ms: int


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
    timings: Timings | UnsetType = UNSET
    object: str = "chat.completion"


class Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


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
    timings: Timings | UnsetType = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET
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
    timings: Timings | UnsetType = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET
    object: str = "text_completion"


class ModelMeta(Struct):
    """As llama.cpp tells it."""

    n_ctx_train: int
    n_ctx: int
    size: int


class ModelCard(Struct):
    """context_length, max_model_len: tokens that are served; n_ctx_train: that the model was trained for.

    loaded: whether it is in memory now.
    """

    id: str
    created: int
    context_length: int
    n_ctx_train: int
    loaded: bool
    max_model_len: int
    meta: ModelMeta
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
    return Usage(used.n_prompt, used.n_completion, total, PromptDetails(used.n_cached), used.lossy or UNSET)


# ---------------------------------------------------------------- chat


def chat_completion(frame: Frame, events: Iterable[Event]) -> ChatCompletion:
    """All events of an answer as one object."""
    texts: dict[int, list[str]] = {}
    thoughts: dict[int, list[str]] = {}
    calls: dict[int, list[CallOut]] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    choices: list[ChatChoice] = []
    used = Used(0, 0, 0)
    for event in events:
        if isinstance(event, Words):
            texts.setdefault(event.index, []).append(event.text)
            logprobs.setdefault(event.index, []).extend(map(_chat_logprob, event.logprobs))
        elif isinstance(event, Thoughts):
            thoughts.setdefault(event.index, []).append(event.text)
            logprobs.setdefault(event.index, []).extend(map(_chat_logprob, event.logprobs))
        elif isinstance(event, Called):
            function = CallFunction(event.call.name, event.call.arguments)
            calls.setdefault(event.index, []).append(CallOut(_call_id(), function))
        elif isinstance(event, Finished):
            i = event.index
            text: str | None = "".join(texts.get(i, ()))
            message = AssistantMessage(text or None if i in calls else text, tool_calls=calls.get(i, UNSET))
            if i in thoughts:
                message.reasoning_content = "".join(thoughts[i])
            told = ChatLogprobs(logprobs[i]) if logprobs.get(i) else None
            choices.append(ChatChoice(i, message, told, _reason(event)))
        elif isinstance(event, Used):
            used = event
    return ChatCompletion(
        frame.id, frame.created, frame.model, choices, usage_of(used), frame.fingerprint, used.timings or UNSET
    )


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
        if not (event.text or told or (isinstance(event, Words) and event.timings)):
            return
        more = Delta(content=event.text) if isinstance(event, Words) else Delta(reasoning_content=event.text)
        piece = chunk(ChunkChoice(event.index, more, told))
        piece.timings = (event.timings if isinstance(event, Words) else None) or UNSET
        yield piece
    elif isinstance(event, Calling):
        call = CallDelta(event.number, FunctionDelta("", event.name), _call_id(), "function")
        yield chunk(ChunkChoice(event.index, Delta(tool_calls=[call])))
    elif isinstance(event, Arguments):
        more_of_it = CallDelta(event.number, FunctionDelta(event.text))
        yield chunk(ChunkChoice(event.index, Delta(tool_calls=[more_of_it])))
    elif isinstance(event, Finished):
        piece = chunk(ChunkChoice(event.index, Delta(), None, _reason(event)))
        piece.timings = event.timings or UNSET
        yield piece
    elif isinstance(event, Used) and with_usage:
        last = chunk()
        last.usage = usage_of(event)
        last.timings = event.timings or UNSET
        yield last


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _reason(event: Finished) -> FinishReason:
    if event.reason == "tool_calls":
        return "tool_calls"
    return "length" if event.reason == "length" else "stop"


def _chat_logprob(one: LogProb) -> TokenLogprob:
    top = [TopLogprob(_text(piece), max(value, _LEAST), list(piece)) for piece, value in one.top]
    return TokenLogprob(_text(one.piece), _number(one) or 0.0, list(one.piece), top)


def _number(one: LogProb) -> float | None:
    return None if one.logprob is None else max(one.logprob, _LEAST)


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


# ---------------------------------------------------------------- completions


class CompletionBuilder:
    """Keeps where each choice's own text begins, for `text_offset`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._begins: dict[int, int] = {}

    def whole(self, events: Iterable[Event]) -> Completion:
        """All events of an answer as one object."""
        choices: dict[int, CompletionChoice] = {}
        usage: Usage | None = None
        timings: Timings | UnsetType = UNSET
        for event in events:
            for piece in self.pieces(event, with_usage=True):
                usage = piece.usage if isinstance(piece.usage, Usage) else usage
                timings = piece.timings or timings
                for choice in piece.choices:
                    known = choices.setdefault(choice.index, CompletionChoice(choice.index, ""))
                    known.text += choice.text
                    known.finish_reason = choice.finish_reason or known.finish_reason
                    known.logprobs = _joined(known.logprobs, choice.logprobs)
        frame = self._frame
        ordered = [choices[i] for i in sorted(choices)]
        return Completion(frame.id, frame.created, frame.model, ordered, frame.fingerprint, usage, timings)

    def pieces(self, event: Event, *, with_usage: bool) -> Iterator[Completion]:
        """An event as pieces of a stream."""
        if isinstance(event, Started):
            for i, text in enumerate(event.echoes):
                self._begins[i] = len(text)
                yield self._piece(CompletionChoice(i, text), with_usage=with_usage)
        elif isinstance(event, Scored):
            scored = CompletionChoice(event.index, "", self._told(event.logprobs, 0))
            yield self._piece(scored, with_usage=with_usage)
        elif isinstance(event, Words):
            told = self._told(event.logprobs, self._begins.get(event.index, 0)) if event.logprobs else None
            if event.text or told or event.timings:
                piece = self._piece(CompletionChoice(event.index, event.text, told), with_usage=with_usage)
                piece.timings = event.timings or UNSET
                yield piece
        elif isinstance(event, Finished):
            piece = self._piece(CompletionChoice(event.index, "", None, _reason(event)), with_usage=with_usage)
            piece.timings = event.timings or UNSET
            yield piece
        elif isinstance(event, Used) and with_usage:
            last = self._piece(with_usage=True)
            last.usage = usage_of(event)
            last.timings = event.timings or UNSET
            yield last

    def _piece(self, *choices: CompletionChoice, with_usage: bool) -> Completion:
        frame, usage = self._frame, None if with_usage else UNSET
        return Completion(frame.id, frame.created, frame.model, list(choices), frame.fingerprint, usage)

    def _told(self, logprobs: tuple[LogProb, ...], begin: int) -> CompletionLogprobs:
        """begin: the characters before the text that offsets are of."""
        return CompletionLogprobs(
            [_text(one.piece) for one in logprobs],
            [_number(one) for one in logprobs],
            [_likeliest(one) for one in logprobs],
            [begin + one.offset for one in logprobs],
        )


def _likeliest(one: LogProb) -> dict[str, float] | None:
    """By text: of tokens with the same text (parts of a character) the likeliest."""
    if one.logprob is None:
        return None
    found: dict[str, float] = {}
    for piece, value in [*one.top, (one.piece, one.logprob)]:
        text = _text(piece)
        found[text] = max(value, found.get(text, _LEAST), _LEAST)
    return found


def _joined(first: CompletionLogprobs | None, second: CompletionLogprobs | None) -> CompletionLogprobs | None:
    """The second's items at the first's end."""
    if first is None or second is None:
        return first or second
    first.tokens += second.tokens
    first.token_logprobs += second.token_logprobs
    first.top_logprobs += second.top_logprobs
    first.text_offset += second.text_offset
    return first
