"""From a request to what the worker does for it, and from its steps to events. Runs in the worker's thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..runtime.engine.engine import Engine
from ..runtime.text.sampling import MAX_SEED, Sampling
from ..runtime.text.stream import Step
from . import prompts
from .failures import invalid
from .prompts import Defaults
from .protocol import ChatRequest, CompletionRequest, Sampled
from .tools import Call, CallReader, offered
from .worker import Work

_MAX_PROMPTS = 64


@dataclass(frozen=True)
class Started:
    """The request is in order; computing begins. texts: what each choice echoes, () when nothing."""

    n_choice: int
    echoes: tuple[str, ...] = ()


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


Event = Started | Words | Called | Finished | Used


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

    def work(engine: Engine) -> Iterator[Event]:
        tokens = prompts.chat_tokens(engine, request, shown)
        sampling = prompts.constrained(prompts.sampling(request, defaults, engine), request, shown)
        limit = request.max_completion_tokens or request.max_tokens or defaults.max_tokens
        stop = prompts.stops(request, engine)
        choices = _choices([tokens], request, sampling)
        yield from _answers(engine, choices, request, limit, stop, n_top, with_calls=bool(shown))

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
    with_calls: bool = False,
    echoes: tuple[str, ...] = (),
) -> Iterator[Event]:
    for choice in choices:
        engine.check(choice.tokens, choice.sampling)
    yield Started(len(choices), echoes)
    n_completion = n_cached = 0
    for index, choice in enumerate(choices):
        if request.cache_prompt is False:
            engine.reset()
        steps = engine.steps(
            choice.tokens, max_tokens=limit, sampling=choice.sampling, stop=stop, n_top=n_top, special=with_calls
        )
        reader = CallReader() if with_calls else None
        for step in steps:
            n_completion += step.token >= 0
            if reader:
                yield from _read(index, reader, reader.feed(step.text))
            elif step.text or step.logprob is not None:
                yield Words(index, step.text, _logprobs(engine, step))
        n_cached += engine.n_reused if index == 0 or choice.tokens is not choices[index - 1].tokens else 0
        if reader:
            yield from _read(index, reader, reader.finish())
        called = reader is not None and reader.n_call > 0
        yield Finished(index, "tool_calls" if called and engine.finish_reason == "stop" else engine.finish_reason)
    # Several answers to one prompt take it once.
    n_prompt = sum(len(choice.tokens) for choice in choices[:: request.n or 1])
    yield Used(n_prompt, n_cached, n_completion)


def _read(index: int, reader: CallReader, found: Iterator[str | Call]) -> Iterator[Event]:
    for item in found:
        yield Called(index, reader.n_call - 1, item) if isinstance(item, Call) else Words(index, item)


def _logprobs(engine: Engine, step: Step) -> tuple[LogProb, ...]:
    if step.logprob is None:
        return ()
    return (LogProb(step.piece, step.logprob, tuple((engine.piece(token), value) for token, value in step.top)),)
