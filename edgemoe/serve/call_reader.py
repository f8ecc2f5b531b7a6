"""Read calls of tools out of a model's text as it comes, in the model's form."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..runtime.text.thinking import begun_mark
from .arguments import ObjectText
from .calls import Call, Known, kinds_of
from .forms import HERMES, Form, parts_of, pattern, value_end

_MAX_LITERAL = 20_000


@dataclass(frozen=True)
class CallBegun:
    """A call that is being written. `CallPart`s follow, and the `Call` when it is whole; half a call has none."""

    name: str


@dataclass(frozen=True)
class CallPart:
    """More of the arguments of the call that is being written: as they are written where that is JSON, else all."""

    text: str


Item = str | CallBegun | CallPart | Call


@dataclass
class _Writing:
    """A call whose arguments are JSON. taken: one that was asked for."""

    name: str
    taken: bool
    begun: bool = False
    arguments: ObjectText = field(default_factory=ObjectText)


class CallReader:
    """Splits a model's text into words and calls as it comes. Text that may be the beginning of a call is held back."""

    def __init__(self, form: Form = HERMES, tools: Sequence[Known] = (), *, most: int | None = None) -> None:
        """tools: say which values are strings. most: calls that are taken; what the model goes on with is dropped."""
        self.n_begun = self.n_call = 0  # calls that were begun, and those that are whole
        self._form = form
        self._tools = {tool.name: tool.schema for tool in tools}
        self._most = most
        self._held = ""
        self._inside = False
        self._writing: _Writing | None = None
        self._made = 0  # calls since the trigger
        named = r"([a-zA-Z0-9_.-]+)" + ("" if form.tagged else pattern(form.neck))
        self._name = re.compile(pattern(form.begin) + named)
        self._between = re.compile(pattern(form.between) + named) if form.between is not None else None
        self._end = re.compile(pattern(form.end))
        # Of a tagged form: what stands before, between and behind keys and values.
        self._empty = re.compile(pattern(form.empty)) if form.empty else None
        self._neck, self._next, self._tail = (re.compile(pattern(one)) for one in (form.neck, form.next, form.tail))
        self._middle = re.compile(f"({pattern(form.middle)}|{pattern(form.middle_json)})")
        self._key = re.compile(f"[^{re.escape(form.middle.lstrip()[:1] or '<')}]+")
        self._value_end = value_end(form)

    def feed(self, text: str) -> Iterator[Item]:
        self._held += text
        while True:
            before = (self._held, self._inside)
            yield from self._inner() if self._inside else self._outer()
            if (self._held, self._inside) == before:
                return

    def told(self, name: str, text: str) -> Iterator[Item]:
        """A call that was told apart already: its name first, and "" with what comes of its arguments later."""
        if name:
            self._begin(name)
        if self._writing:
            yield from self._write(text)
        self._held = ""

    def _begin(self, name: str) -> None:
        self._writing = _Writing(name, self._most is None or self.n_begun < self._most)

    def _write(self, text: str) -> Iterator[Item]:
        """More of the call that is being written; what stands behind it is held."""
        call = self._writing
        assert call
        part, self._held = call.arguments.feed(text)
        if part and call.taken:
            if not call.begun:
                call.begun = True
                self.n_begun += 1
                yield CallBegun(call.name)
            yield CallPart(part)
        if call.arguments.done:
            self._writing = None
            self._made += 1
            if call.begun and call.arguments.whole():
                self.n_call += 1
                yield Call(call.name, call.arguments.text)

    def _take(self, name: str, arguments: Mapping[str, Any]) -> Iterator[Item]:
        """A call that comes whole."""
        self._begin(name)
        yield from self._write(json.dumps(arguments, ensure_ascii=False))

    def _outer(self) -> Iterator[Item]:
        trigger = self._form.trigger
        before, found, rest = self._held.partition(trigger)
        if found:
            self._held, self._inside, self._made = rest, True, 0
            if before.strip():
                yield before
            return
        keep = begun_mark(self._held, trigger)
        ready = self._held[: len(self._held) - keep]
        if ready and (ready.strip() or not self.n_call):  # blanks between calls are no words
            self._held = self._held[len(ready) :]
            yield ready

    def _inner(self) -> Iterator[Item]:
        """One more call, or the end of them."""
        if self._writing:
            yield from self._write(self._held)
            return
        if self._made and not self._may_go_on():
            end = self._end.match(self._held)
            self._held, self._inside = self._held[end.end() if end else 0 :], False
            return
        head = (self._between if self._made and self._between else self._name).match(self._held)
        if head and not self._form.tagged and self._held.startswith("{", head.end()):
            self._begin(head[1])
            yield from self._write(self._held[head.end() :])
            return
        call = self._read_tagged(head[1], head.end()) if head and self._form.tagged else None
        if head and call:
            arguments, at = call
            rest = self._held[at:]
            yield from self._take(head[1], arguments)
            self._held = rest
            return
        close = _last_mark(self._form.end or self._form.tail)
        if close and close in self._held and not self._made:
            inside, _, rest = self._held.partition(close)
            yield from self._lenient(inside)
            self._held, self._inside = rest, False

    def _may_go_on(self) -> bool:
        """Whether what is held may be what stands between calls or behind them, or the beginning of it."""
        ways = (parts_of(self._form.end)[0], parts_of(self._form.between or "")[0])
        if self._form.end and self._end.fullmatch(self._held.rstrip()) and not self._form.between:
            return False
        whole = self._end.match(self._held) if self._form.end else None
        if whole and not (ways[1] and (ways[1].startswith(self._held) or self._held.startswith(ways[1]))):
            return False
        return any(way and (way.startswith(self._held) or self._held.startswith(way)) for way in ways)

    def _read_tagged(self, name: str, at: int) -> tuple[dict[str, Any], int] | None:
        """Arguments from a place on, and where they end; None while they are not whole."""
        held = self._held
        empty = self._empty.match(held, at) if self._empty else None
        if empty:
            return {}, empty.end()
        arguments: dict[str, Any] = {}
        opening = self._neck.match(held, at)
        while opening:
            key = self._key.match(held, opening.end())
            begin = self._middle.match(held, key.end()) if key else None
            if not key or not begin:
                return None
            end = held.find(self._value_end, begin.end())
            if end < 0:
                return None
            arguments[key[0].strip()] = self._value(name, key[0].strip(), held[begin.end() : end])
            opening = self._next.match(held, end)
            tail = self._tail.match(held, end)
            if not opening and tail:
                return arguments, tail.end()
        return None

    def _value(self, name: str, key: str, text: str) -> Any:
        document = self._tools.get(name, {})
        fields = document.get("properties", {})
        kinds = kinds_of(fields.get(key, True) if isinstance(fields, Mapping) else True, document)
        if text.startswith("<![CDATA[") and text.endswith("]]>"):
            text = text[9:-3]
        if kinds == {"string"}:
            return text
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
        if len(text) <= _MAX_LITERAL:  # some templates show values as Python writes them, and models learn that
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = ast.literal_eval(text.strip())
                json.dumps(found)
                return found
        return text

    def _lenient(self, inside: str) -> Iterator[Item]:
        """A section that is not quite in form: JSON of calls all the same, or words."""
        try:
            found = json.loads(inside)
            for one in found if isinstance(found, list) else [found]:
                name, arguments = one["name"], one.get("arguments", one.get("parameters", {}))
                if not isinstance(name, str) or not isinstance(arguments, dict):
                    raise TypeError
                yield from self._take(name, arguments)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            yield self._form.trigger + inside

    def finish(self) -> Iterator[Item]:
        """What was held back. Half a call is nothing."""
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            if not self._made:
                found = [*self._lenient(held)]
                yield from (one for one in found if isinstance(one, Call))
        elif (held.strip() and not self._form.trigger.startswith(held.strip())) or (held.strip() and not self.n_call):
            yield held


def _last_mark(text: str) -> str:
    found = re.findall(r"<[^<>\s]+>", text)
    return found[-1] if found else ""
