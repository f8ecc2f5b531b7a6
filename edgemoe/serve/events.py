"""What happens while an answer is computed, in no protocol's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .calls import Call
from .lossy import Lossy
from .scoring import LogProb
from .timing import Timings


@dataclass(frozen=True)
class Started:
    """The request is in order; computing begins. echoes: what each choice begins with, () when nothing.

    n_prompt: tokens of the first prompt. notes: what of the request's schemas no grammar holds.
    """

    n_choice: int
    echoes: tuple[str, ...] = ()
    n_prompt: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """The tokens of a choice's echoed prompt."""

    index: int
    logprobs: tuple[LogProb, ...]


@dataclass(frozen=True)
class Words:
    """More of a choice's text; logprobs: of the tokens since the last event, if asked for. tokens: those since then."""

    index: int
    text: str
    logprobs: tuple[LogProb, ...] = ()
    tokens: tuple[int, ...] = ()
    timings: Timings | None = None


@dataclass(frozen=True)
class Thoughts:
    """More of what the model thinks before a choice's text; logprobs, tokens: as of Words."""

    index: int
    text: str
    logprobs: tuple[LogProb, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Calling:
    """A choice begins to call a tool: its number-th call. It is nothing where no `Called` follows."""

    index: int
    number: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """More of the JSON text of the arguments of a call that has begun."""

    index: int
    number: int
    text: str


@dataclass(frozen=True)
class Called:
    """A call is whole: all of what was said of it in parts."""

    index: int
    number: int
    call: Call


@dataclass(frozen=True)
class Finished:
    """reason: "stop", "length" or "tool_calls". stop: the stop text that ended it, "" if none did."""

    index: int
    reason: str
    stop: str = ""
    timings: Timings | None = None


@dataclass(frozen=True)
class Used:
    """What the request took, in tokens. n_cached: of the prompt, those that were not computed again."""

    n_prompt: int
    n_cached: int
    n_completion: int
    timings: Timings | None = None
    lossy: Lossy | None = None


Event = Started | Scored | Words | Thoughts | Calling | Arguments | Called | Finished | Used


def without_half_calls(events: Sequence[Event]) -> list[Event]:
    """A whole answer has whole calls only."""
    whole = {(event.index, event.number) for event in events if isinstance(event, Called)}
    return [
        event for event in events if not isinstance(event, Calling | Arguments) or (event.index, event.number) in whole
    ]


def used_in(events: Sequence[Event]) -> Used:
    """What a whole answer took."""
    return next((event for event in reversed(events) if isinstance(event, Used)), Used(0, 0, 0))
