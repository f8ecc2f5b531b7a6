"""Calls of tools in each model's own form, read off its chat template: a table of the marks, the rest by rendering.

A template shows earlier calls as the model writes them. So a few short conversations with calls are rendered, and what
stands before, between and behind names and arguments is the form. What is in no table, or has no such shape, is asked
for in Hermes' form, in words.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass

from ..runtime.text.gbnf import literal
from ..runtime.text.messages import PROBE_KEY, PROBE_NAME, PROBE_VALUE, shown_calls, shows_tools
from ..runtime.text.thinking import CHANNEL, MESSAGE

_OTHER_KEY = "probe_other"
_N_PROBED = 8

# What begins the calls of an answer, and what ends them: more special marks first. "" ends with the arguments.
# ruff: noqa: RUF001  (DeepSeek's own bars)
_MARKS = (
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
    ("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"),
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ("<seed:tool_call>", "</seed:tool_call>"),
    ("<tool_calls:opensource>", "</tool_calls:opensource>"),
    ("<tool_calls>", "</tool_calls>"),
    ("<tool_call>", "</tool_call>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    ("<|tool_calls|>", "<|tool_call:end|>"),
    ("<|function_call|>", "}"),
    ("[TOOL_CALLS]", ""),
    ("<function=", "</function>"),
    ('<function name="', "</function>"),
    ('{"name": "', "}"),
)
# What the model fills in by itself: nine letters and digits of an id, or the number of a call.
_ID = re.compile(r'call0000\d|(?<=:)\d(?=<)|(?<=": ")\d(?=")')


@dataclass(frozen=True)
class Form:
    """How calls are written.

    trigger, begin, name, …, between, name, …, end: the order of things. After a name come `neck` and the arguments as
    JSON, or (tagged) `neck`, a key, `middle`, a value, `next`, a key, `middle`, a value, …, and `tail`; `empty` instead
    of all this where there are no arguments. between: None where there is one call only.
    middle_json: `middle` of values that are no strings.
    """

    trigger: str
    begin: str
    neck: str
    end: str
    between: str | None
    tagged: bool = False
    middle: str = ""
    middle_json: str = ""
    next: str = ""
    tail: str = ""
    empty: str = ""
    channels: bool = False
    native: bool = True


HERMES = Form(
    trigger="<tool_call>",
    begin='\n{"name": "',
    neck='", "arguments": ',
    end="}\n</tool_call>",
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    native=False,
)
"""What models without a form of their own are asked for; Qwen and many others were trained on it."""

CHANNELS = Form(" to=functions.", "", "", "", None, channels=True)
"""gpt-oss: `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>`."""


@functools.lru_cache(_N_PROBED)
def form_of(template: str | None) -> Form:
    """The form that a chat template shows, HERMES where it shows none that is known here. Raises FormatError."""
    if not template:
        return HERMES
    one = shown_calls(template)
    if PROBE_NAME not in one:
        return HERMES
    if f"to=functions.{PROBE_NAME}" in one and CHANNEL in one and MESSAGE in one:
        return CHANNELS
    before = one[: one.index(PROBE_NAME)]
    for trigger, close in _MARKS:
        if trigger in before:
            return _json_form(template, trigger, close) or _tagged_form(template, trigger, close) or HERMES
    return HERMES


@functools.lru_cache(_N_PROBED)
def told_by(template: str | None) -> bool:
    """Whether the template itself tells the model of tools, in the form that is read here."""
    return bool(template and form_of(template).native and shows_tools(template))


def _section(template: str, trigger: str, close: str, calls: list[tuple[str, dict[str, object]]], last: str) -> str:
    """What a template writes of some calls, behind the trigger and up to the end of what belongs to them."""
    text = shown_calls(template, calls=json.dumps(calls))
    begin, after = text.find(trigger), text.rfind(last)
    if begin < 0 or after < begin:
        return ""
    after += len(last)
    if close == "" or text[after:].startswith(close):
        # A list that was begun is closed, with what stands in its last object.
        rest = (
            re.match(r'(?:, "id": "call0000\d")?\}?\s*\]', text[after:]) if "[{" in text[begin : begin + 40] else None
        )
        return text[begin + len(trigger) : after + (len(rest[0]) if rest else len(close))]
    end = text.find(close, after)
    return "" if end < 0 else text[begin + len(trigger) : end + len(close)]


def _json_form(template: str, trigger: str, close: str) -> Form | None:
    """A form whose arguments are JSON."""
    given: dict[str, object] = {PROBE_KEY: PROBE_VALUE}
    spelled = json.dumps(given)
    one = _section(template, trigger, close, [(PROBE_NAME, given)], spelled)
    found = re.fullmatch(f"(.*?){PROBE_NAME}(.*?){re.escape(spelled)}(.*)", one, re.DOTALL)
    if not found:
        return None
    begin, neck, end = found.groups()
    two = _section(template, trigger, close, [(PROBE_NAME, given), (PROBE_NAME, given)], spelled)
    return Form(trigger, begin, neck, end, _between(two, spelled, begin, neck, end))


def _between(two: str, last: str, begin: str, neck: str, end: str) -> str | None:
    call = f"{PROBE_NAME}{_like(neck)}{re.escape(last)}"
    found = re.fullmatch(f"{_like(begin)}{call}(.*?){call}{_like(end)}", two, re.DOTALL)
    return found[1] if found else None


def _like(text: str) -> str:
    """A pattern of a fixed part, whatever ids are in it."""
    return "".join(re.escape(part) if i % 2 == 0 else r"[a-zA-Z0-9]+" for i, part in enumerate(parts_of(text)))


def parts_of(text: str) -> list[str]:
    """Fixed texts at even places, what the model fills in at odd ones."""
    parts, at = [], 0
    for found in _ID.finditer(text):
        parts += [text[at : found.start()], found[0]]
        at = found.end()
    return [*parts, text[at:]]


def _tagged_form(template: str, trigger: str, close: str) -> Form | None:
    """A form whose arguments are keys and values between marks."""
    key, value, other = PROBE_KEY, PROBE_VALUE, _OTHER_KEY

    def section(*calls: dict[str, object], last: str) -> str:
        return _section(template, trigger, close, [(PROBE_NAME, given) for given in calls], last)

    one = section({key: value}, last=value)
    found = re.fullmatch(f"(.*?){PROBE_NAME}(.*?){key}(.*?){value}(.*)", one, re.DOTALL)
    if not found or not re.search(r"[<>]", found[2]):
        return None
    begin, neck, middle, tail = found.groups()
    several = section({key: value, other: value}, last=value)
    fixed = f"{_like(begin)}{PROBE_NAME}{_like(neck)}{key}{_like(middle)}{value}"
    next_ = re.fullmatch(f"{fixed}(.*?){other}{_like(middle)}{value}{_like(tail)}", several, re.DOTALL)
    number = re.fullmatch(
        f"{_like(begin)}{PROBE_NAME}{_like(neck)}{key}(.*?)7{_like(tail)}", section({key: 7}, last="7"), re.DOTALL
    )
    empty = re.fullmatch(f"{_like(begin)}{PROBE_NAME}(.*)", section({}, last=PROBE_NAME), re.DOTALL)
    if not next_ or not number or not empty or key in tail or not _closing(tail):
        return None
    two = section({key: value}, {key: value}, last=value)
    split = re.fullmatch(
        f"{fixed}(.*?){PROBE_NAME}{_like(neck)}{key}{_like(middle)}{value}{_like(tail)}", two, re.DOTALL
    )
    # Behind the last value of a call stands what closes it, then what opens the next.
    between = None
    if split:
        closing = tail.removesuffix(close) if split[1].find(close) < 0 else tail
        kept = _shared(closing, split[1])
        between = split[1][len(kept) :] if kept else None
        tail_here = kept
    else:
        tail_here = tail
    end = tail[len(tail_here) :]
    bare = empty[1][: len(empty[1]) - len(end)] if end and empty[1].endswith(end) else empty[1]
    return Form(
        trigger, begin, neck, end, between, tagged=True, middle=middle, middle_json=number[1], next=next_[1],
        tail=tail_here, empty=bare,
    )  # fmt: skip


def _closing(tail: str) -> str:
    """What a value ends before: the first mark behind it."""
    found = re.search(r"<[^<>]*>|\S+", tail)
    return tail[: found.end()] if found else ""


def value_end(form: Form) -> str:
    """The text that no raw value may hold."""
    return _closing(form.tail + form.end)


def _shared(first: str, second: str) -> str:
    """How two texts begin alike, up to the end of a mark."""
    n = 0
    while n < min(len(first), len(second)) and first[n] == second[n]:
        n += 1
    cut = first.rfind(">", 0, n) + 1
    return first[:cut]


def example(form: Form) -> str:
    """A call with placeholders, for models that must be told."""
    if form.channels or form.tagged:
        return ""
    return _ID.sub("000000000", written(form, "NAME", '{"KEY": "VALUE"}'))


def written(form: Form, name: str, arguments: str) -> str:
    """A call as a model writes it in a form of JSON. name, arguments: as they stand in it."""
    return form.trigger + form.begin + name + form.neck + arguments + form.end


def piece(text: str) -> str:
    """GBNF of a fixed part."""
    found = []
    for i, part in enumerate(parts_of(text)):
        if i % 2 == 0:
            if part:
                found.append(literal(part))
        else:
            found.append("[a-zA-Z0-9]{9}" if part.startswith("call") else "[0-9]{1,3}")
    return " ".join(found)


def pattern(text: str) -> str:
    """A regular expression of a fixed part: blanks as they come, ids as they are."""
    found = []
    for i, part in enumerate(parts_of(text)):
        if i % 2:
            found.append("[a-zA-Z0-9_.:-]*")
            continue
        words = re.split(r"\s+", part)
        found.append(r"\s*".join(map(re.escape, words)))
    return "".join(found)
