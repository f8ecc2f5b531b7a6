"""From a request to what the worker does for it, and from its steps to events. Runs in the worker's thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..runtime.engine.engine import Engine
from ..runtime.text.sampling import MAX_SEED, Sampling
from ..runtime.text.stream import Step
from ..runtime.text.thinking import Piece, Thinking
from . import prompts
from .calls import Call, CallReader, Known
from .failures import invalid
from .forms import Form
from .prompts import Defaults
from .protocol import ChatRequest, CompletionRequest, Sampled
from .tools import known, most_calls, offered
from .worker import Work

_PLAIN = Thinking()
_MAX_PROMPTS = 64


@dataclass(frozen=True)
class Started:
    """The request is in order; computing begins. echoes: what each choice echoes, () when nothing.

    notes: what of the request's schemas no grammar holds.
    """

    n_choice: int
    echoes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogProb:
    """A token with its log-probability, and the likeliest ones."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Words:
    """More of a choice's text; logprobs: of the tokens since the last event, if asked for."""

    index: int
    text: str
    logprobs: tuple[LogProb, ...] = ()


@dataclass(frozen=True)
class Thoughts:
    """More of what the model thinks before a choice's text; logprobs: as of Words."""

    index: int
    text: str
    logprobs: tuple[LogProb, ...] = ()


@dataclass(frozen=True)
class Called:
    """A choice calls a tool: its number-th call."""

    index: int
    number: int
    call: Call


@dataclass(frozen=True)
class Finished:
    """reason: "stop", "length" or "tool_calls"."""

    index: int
    reason: str


@dataclass(frozen=True)
class Used:
    """What the request took, in tokens. n_cached: of the prompt, those that were not computed again."""

    n_prompt: int
    n_cached: int
    n_completion: int


Event = Started | Words | Thoughts | Called | Finished | Used


@dataclass(frozen=True)
class _Choice:
    """An answer to be computed."""

    tokens: list[int]
    sampling: Sampling


def chat_work(request: ChatRequest, defaults: Defaults) -> Work:
    """Raises ApiError for what can be seen without a model."""
    shown = offered(request)
    if request.top_logprobs and not request.logprobs:
        raise invalid("`top_logprobs` needs `logprobs`", "top_logprobs")
    n_top = (request.top_logprobs or 0) if request.logprobs else None
    if n_top is not None and shown:
        raise invalid("log-probabilities of answers with tools are not supported", "logprobs")
    prompts.stops(request)
    prompts.template_variables(request)

    def work(engine: Engine) -> Iterator[Event]:
        form = prompts.form_of(engine, shown)
        prompt = prompts.chat_prompt(engine, request, shown, form)
        chosen = prompts.sampling(request, defaults, engine)
        sampling, notes = prompts.constrained(chosen, request, shown, form, prompt.thinking)
        limit = request.max_completion_tokens or request.max_tokens or defaults.max_tokens
        stop = prompts.stops(request, engine)
        choices = _choices([prompt.tokens], request, sampling)
        reading = Reading(prompt.thinking, form if shown else None, known(shown), most_calls(request))
        yield from _answers(engine, choices, request, limit, stop, n_top, reading=reading, notes=notes)

    return work


def completion_work(request: CompletionRequest, defaults: Defaults) -> Work:
    """Raises ApiError for what can be seen without a model."""
    given = prompts.texts_or_tokens(request.prompt, "prompt")
    if len(given) * (request.n or 1) > _MAX_PROMPTS:
        raise invalid(f"more than {_MAX_PROMPTS} answers at once", "prompt")
    if request.suffix:
        raise invalid("`suffix` is not supported", "suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise invalid("`best_of` other than `n` is not supported", "best_of")
    if request.echo and request.logprobs is not None:
        raise invalid("log-probabilities of the prompt are not supported: `echo` with `logprobs`", "echo")
    stop = prompts.stops(request)

    def work(engine: Engine) -> Iterator[Event]:
        tokens = [prompts.tokens_of(engine, prompt, "prompt") for prompt in given]
        if any(not one for one in tokens):
            raise invalid("a prompt is empty", "prompt")
        sampling = prompts.sampling(request, defaults, engine)
        limit = request.max_tokens or defaults.max_tokens or _COMPLETION_TOKENS
        choices = _choices(tokens, request, sampling)
        echoes: tuple[str, ...] = ()
        if request.echo:
            texts = [one if isinstance(one, str) else engine.detokenize(one) for one in given]
            echoes = tuple(text for text in texts for _ in range(request.n or 1))
        yield from _answers(engine, choices, request, limit, stop, request.logprobs, echoes=echoes)

    return work


_COMPLETION_TOKENS = 16  # OpenAI's default of `max_tokens` for completions


def _choices(tokens: Sequence[list[int]], request: Sampled, sampling: Sampling) -> list[_Choice]:
    """n answers to each prompt; with a seed the answers take the seeds from it on."""
    seeds = [None if sampling.seed is None else (sampling.seed + i) % (MAX_SEED + 1) for i in range(request.n or 1)]
    return [_Choice(one, replace(sampling, seed=seed)) for one in tokens for seed in seeds]


def _answers(
    engine: Engine,
    choices: Sequence[_Choice],
    request: Sampled,
    limit: int | None,
    stop: Sequence[str],
    n_top: int | None,
    *,
    reading: Reading | None = None,
    echoes: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Iterator[Event]:
    reading = reading or Reading()
    for choice in choices:
        engine.check(choice.tokens, choice.sampling)
    yield Started(len(choices), echoes, notes)
    n_completion = n_cached = 0
    for index, choice in enumerate(choices):
        if request.cache_prompt is False:
            engine.reset()
        steps = engine.steps(
            choice.tokens,
            max_tokens=limit,
            sampling=choice.sampling,
            stop=stop,
            n_top=n_top,
            special=reading.form is not None,
        )
        reader = AnswerReader(index, reading)
        for step in steps:
            n_completion += step.token >= 0
            yield from reader.feed(step.text, _logprobs(engine, step))
        n_cached += engine.n_reused if index == 0 or choice.tokens is not choices[index - 1].tokens else 0
        yield from reader.finish()
        called = reader.n_call > 0 and engine.finish_reason == "stop"
        yield Finished(index, "tool_calls" if called else engine.finish_reason)
    # Several answers to one prompt take it once.
    n_prompt = sum(len(choice.tokens) for choice in choices[:: request.n or 1])
    yield Used(n_prompt, n_cached, n_completion)


@dataclass(frozen=True)
class Reading:
    """How an answer's text is read. form: of calls, None where no tools are offered. most: calls that are taken."""

    thinking: Thinking = _PLAIN
    form: Form | None = None
    tools: Sequence[Known] = ()
    most: int | None = None


class AnswerReader:
    """Text of an answer to events: thinking, calls and words told apart."""

    def __init__(self, index: int, reading: Reading) -> None:
        self._index = index
        self._thinking = reading.thinking.reader()
        self._calls = CallReader(reading.form, reading.tools, most=reading.most) if reading.form else None
        self._in_channels = reading.form is not None and reading.form.channels
        self._waiting: tuple[LogProb, ...] = ()

    @property
    def n_call(self) -> int:
        return self._calls.n_call if self._calls else 0

    def feed(self, text: str, logprobs: tuple[LogProb, ...] = ()) -> Iterator[Event]:
        self._waiting += logprobs
        for piece in self._thinking.feed(text):
            yield from self._events(piece)

    def finish(self) -> Iterator[Event]:
        for piece in self._thinking.finish():
            yield from self._events(piece)
        if self._calls:
            yield from self._told(self._calls.finish())
        if self._waiting:  # tokens whose text was a mark
            yield self._words("")

    def _events(self, piece: Piece) -> Iterator[Event]:
        if piece.kind == "thinking":
            logprobs, self._waiting = self._waiting, ()
            yield Thoughts(self._index, piece.text, logprobs)
        elif piece.kind == "call":
            # Where no tools were offered, a call that the model imagines is nobody's.
            if self._calls:
                yield from self._told(self._calls.made(piece.name, piece.text))
        elif self._calls and not self._in_channels:
            yield from self._told(self._calls.feed(piece.text))
        else:
            yield self._words(piece.text)

    def _told(self, found: Iterator[str | Call]) -> Iterator[Event]:
        assert self._calls
        for item in found:
            yield Called(self._index, self.n_call - 1, item) if isinstance(item, Call) else self._words(item)

    def _words(self, text: str) -> Words:
        logprobs, self._waiting = self._waiting, ()
        return Words(self._index, text, logprobs)


def _logprobs(engine: Engine, step: Step) -> tuple[LogProb, ...]:
    if step.logprob is None:
        return ()
    piece = step.piece or engine.piece(step.token)  # of control tokens too, as among the likeliest
    return (LogProb(piece, step.logprob, tuple((engine.piece(token), value) for token, value in step.top)),)
