"""From a request to what the worker does for it, and from its steps to events. Runs in the worker's thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..runtime.engine.engine import Engine
from ..runtime.text.sampling import MAX_SEED, Sampling
from ..runtime.text.stream import Step
from . import prompts, sampled
from .events import Event, Finished, Scored, Started, Used
from .failures import invalid
from .infill import Middle, prompt_of
from .lossy import lossy_of
from .prompts import Defaults
from .protocol import ChatRequest, CompletionRequest, Sampled
from .reading import AnswerReader, Reading
from .scoring import Told, scored
from .timing import Clock
from .tools import known, most_calls, offered
from .worker import Work

_MAX_PROMPTS = 64


@dataclass(frozen=True)
class _Choice:
    """An answer to be computed."""

    tokens: list[int]
    sampling: Sampling


def chat_work(request: ChatRequest, defaults: Defaults) -> Work:
    """Raises ApiError for what can be seen without a model."""
    request = sampled.normalised(request)
    shown = offered(request)
    if request.top_logprobs and not request.logprobs:
        raise invalid("`top_logprobs` needs `logprobs`", "top_logprobs")
    n_top = (request.top_logprobs or 0) if request.logprobs else None
    if n_top is not None and shown:
        raise invalid("log-probabilities of answers with tools are not supported", "logprobs")
    prompts.stops(request)
    prompts.template_variables(request)
    asked, begun = sampled.continued(request)
    limit = sampled.limit(request, request.max_completion_tokens, defaults)
    if limit == 0:
        raise invalid("an answer of 0 tokens: a chat is asked for 1 or more", "max_tokens")

    def work(engine: Engine) -> Iterator[Event]:
        form = prompts.form_of(engine, shown)
        prompt = prompts.chat_prompt(engine, asked, shown, form, begun)
        chosen = sampled.sampling(request, defaults, engine)
        notes: tuple[str, ...] = ()
        own = sampled.with_grammar(chosen, request)
        if own is None:
            own, notes = prompts.constrained(chosen, request, shown, form, prompt.thinking)
        stop = prompts.stops(request, engine)
        choices = _choices([prompt.tokens], request, own)
        reading = Reading(prompt.thinking, form if shown else None, known(shown), most_calls(request))
        yield from _answers(engine, choices, request, limit, stop, n_top, reading=reading, notes=notes)

    return work


def counting_work(request: ChatRequest) -> Work:
    """How many tokens a conversation is shown to the model as. Raises ApiError for what is seen without a model."""
    asked, begun = sampled.continued(request)
    shown = offered(asked)

    def work(engine: Engine) -> Iterator[int]:
        yield len(prompts.shown_tokens(engine, asked, shown, begun))

    return work


def completion_work(request: CompletionRequest, defaults: Defaults, middle: Middle | None = None) -> Work:
    """middle: what the answer is put into, in place of a prompt. Raises ApiError for what is seen without a model."""
    given = prompts.texts_or_tokens(request.prompt, "prompt")
    if len(given) * (request.n or 1) > _MAX_PROMPTS:
        raise invalid(f"more than {_MAX_PROMPTS} answers at once", "prompt")
    if request.suffix and not middle:
        if len(given) != 1 or not isinstance(given[0], str):
            raise invalid("`suffix` needs one prompt, and that as a text", "suffix")
        middle = Middle(given[0], request.suffix)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise invalid("`best_of` other than `n` is not supported", "best_of")
    stop = prompts.stops(request)
    limit = sampled.limit(request, None, defaults, otherwise=_COMPLETION_TOKENS)

    def work(engine: Engine) -> Iterator[Event]:
        tokens = [prompts.tokens_of(engine, prompt, "prompt") for prompt in given]
        if middle:
            tokens = [prompt_of(engine, middle, limit)]
        if any(not one for one in tokens):
            raise invalid("a prompt is empty", "prompt")
        chosen = sampled.sampling(request, defaults, engine)
        chosen = sampled.with_grammar(chosen, request) or chosen
        choices = _choices(tokens, request, chosen)
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
    """All choices one after another. echoes: their prompts' texts, which come before the answers."""
    for choice in choices:
        engine.check(choice.tokens, choice.sampling)
    yield Started(len(choices), echoes, len(choices[0].tokens), notes)
    clock = Clock()
    before = engine.stats()
    n_cached = 0
    for index, choice in enumerate(choices):
        clock.begin()
        if echoes and n_top is not None:
            yield Scored(index, scored(engine, choice.tokens, n_top))
        if limit == 0:
            if not echoes or n_top is None:
                engine.eval_prompt(choice.tokens)
            clock.prompt_done(len(choice.tokens), 0)
            yield Finished(index, "length", "", clock.timings())
            continue
        yield from _one(engine, index, choice, request, limit, stop, n_top, clock, reading or Reading())
        n_cached += engine.n_reused if index == 0 or choice.tokens is not choices[index - 1].tokens else 0
    # Several answers to one prompt take it once.
    n_prompt = sum(len(choice.tokens) for choice in choices[:: request.n or 1])
    lossy = lossy_of(engine.stats().since(before))
    yield Used(n_prompt, n_cached, clock.n_predicted, clock.timings(), lossy)


def _one(
    engine: Engine,
    index: int,
    choice: _Choice,
    request: Sampled,
    limit: int | None,
    stop: Sequence[str],
    n_top: int | None,
    clock: Clock,
    reading: Reading,
) -> Iterator[Event]:
    """One choice. The log-probabilities of tokens whose text is held back come with that text, or not at all."""
    steps = engine.steps(
        choice.tokens, max_tokens=limit, sampling=choice.sampling, stop=stop, n_top=n_top,
        special=reading.form is not None, stop_tokens=frozenset(request.stop_token_ids or ()),
        anew=request.cache_prompt is False,
    )  # fmt: skip
    reader = AnswerReader(index, reading)
    told = Told(engine, n_top)
    ended = _Ending(stop)
    for step in steps:
        clock.step(step, len(choice.tokens), engine.n_reused)
        ended.feed(step)
        timings = clock.timings() if request.timings_per_token else None
        yield from reader.feed(step.text, told.feed(step), step.token, timings)
    clock.end(len(choice.tokens), engine.n_reused)
    rest = told.finish(stopped=engine.finish_reason == "stop" and bool(ended.stop))
    yield from reader.finish(rest)
    called = reader.n_call > 0 and engine.finish_reason == "stop"
    reason = "tool_calls" if called else engine.finish_reason
    yield Finished(index, reason, ended.stop if reason == "stop" else "", clock.timings())


class _Ending:
    """Which stop text ended an answer."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [text.encode() for text in stops]
        self._tail = b""
        self._longest = max(map(len, self._stops), default=0)
        self.stop = ""

    def feed(self, step: Step) -> None:
        if not self._stops or self.stop:
            return
        self._tail += step.piece
        found = [(at, text) for text in self._stops if (at := self._tail.find(text)) >= 0]
        self.stop = min(found)[1].decode() if found else ""
        self._tail = self._tail[-self._longest :]
