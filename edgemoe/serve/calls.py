"""Calls of tools in the form of a model: the grammar that they follow, and how they are read out of its text."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..runtime.text.gbnf import JSON_RULES, in_class, literal, rules_text
from ..runtime.text.grammar import Converter
from ..runtime.text.schema import find, plain, types_of
from ..runtime.text.thinking import Thinking, begun_mark
from .forms import HERMES, Form, parts_of, pattern, piece, value_end

_MAX_LITERAL = 20_000


@dataclass(frozen=True)
class Call:
    """A call that a model made. arguments: JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Known:
    """A tool that may be called. schema: of its arguments, an object's."""

    name: str
    schema: Mapping[str, Any]
    strict: bool = False


# ---------------------------------------------------------------- grammar


def until(name: str, stop: str) -> list[str]:
    """Rules of any text that does not hold `stop`; the first is `name`-0, one for each part of it that was seen."""
    lines = []
    for seen in range(len(stop)):
        ways, told = ['""'], ""
        for char in dict.fromkeys(stop[: seen + 1]):
            text = stop[:seen] + char
            at = next(n for n in range(min(len(text), len(stop)), -1, -1) if text.endswith(stop[:n]))
            told += in_class(char) if at else ""
            if 0 < at < len(stop):
                ways.append(f"[{in_class(char)}] {name}-{at}")
        lines.append(f"{name}-{seen} ::= {' | '.join(ways)} | [^{told}] {name}-0")
    return lines


def after_thinking(grammar: str, thinking: Thinking) -> str:
    """A grammar of an answer, for a model that thinks before it answers."""
    root, rest = _split(grammar)
    if thinking.channels:
        mind = '("<|channel|>analysis<|message|>" mind-0 "<|end|><|start|>assistant")?'
        return "\n".join([f"root ::= {mind} ({root})", *rest, *until("mind", "<|end|>")])
    if thinking.marks is None:
        return grammar
    closed = f'mind-0 {literal(thinking.marks.close)} "\\n"{{0,2}}'
    mind = closed if thinking.opened else f"({literal(thinking.marks.open)} {closed})?"
    return "\n".join([f"root ::= {mind} ({root})", *rest, *until("mind", thinking.marks.close)])


def behind(text: str, grammar: str) -> str:
    """Texts of a grammar that stand behind a text."""
    root, rest = _split(grammar)
    return "\n".join([f"root ::= {literal(text)} ({root})", *rest])


def _split(grammar: str) -> tuple[str, list[str]]:
    root, *rest = grammar.splitlines()
    return root.partition("::=")[2].strip(), rest


def either(first: str, second: str) -> str:
    """Texts of one grammar or of the other. Rules of the same name are the same rules, but for the roots."""
    (one, rest), (other, more) = _split(first), _split(second)
    return "\n".join([f"root ::= ({one}) | ({other})", *dict.fromkeys([*rest, *more])])


def calls_grammar(form: Form, tools: Sequence[Known], *, required: bool, parallel: bool) -> tuple[str, list[str]]:
    """The grammar of calls, from the form's trigger on where none is required; and what of the schemas is not held.

    Raises UsageError that begins with the tool's name.
    """
    rules: list[str] = []
    notes: list[str] = []
    for i, tool in enumerate(tools):
        converter = Converter(tool.schema, strict=tool.strict, prefix=f"t{i}")
        try:
            rest = _tagged(form, tool, converter, i, rules) if form.tagged else _json(form, tool, converter)
        except UsageError as error:
            raise UsageError(f"the parameters of `{tool.name}`: {error.message}", error.hint) from None
        notes += [f"the parameters of `{tool.name}`: {note}" for note in converter.notes]
        rules += converter.own_lines()
        rules.append(f"call-{i} ::= {literal(tool.name)} {rest}")
    rules.append("call ::= " + " | ".join(f"call-{i}" for i in range(len(tools))))
    if form.channels:
        begin = literal(f"<|channel|>commentary{form.trigger}") if required else ""
        return "\n".join([f"root ::= {begin} call", *rules, *rules_text(JSON_RULES)]), notes
    more = f"({piece(form.between)} call)*" if parallel and form.between is not None else ""
    parts = (literal(form.trigger) if required else "", piece(form.begin), "call", more, piece(form.end))
    root = "root ::= " + " ".join(part for part in parts if part)
    if form.tagged:
        rules += until("raw", value_end(form))
    return "\n".join([root, *rules, *rules_text(JSON_RULES)]), notes


def _json(form: Form, tool: Known, converter: Converter) -> str:
    arguments = converter.rule({"type": "object", **tool.schema}, "arguments")
    if form.channels:
        header = '("<|channel|>" [a-z]+)? " "? "<|constrain|>"? "json"? "<|message|>"'
        return f"{header} {arguments}"
    return f"{piece(form.neck)} {arguments}"


def _tagged(form: Form, tool: Known, converter: Converter, i: int, rules: list[str]) -> str:
    """Keys and values between marks: strings as they are, everything else as JSON."""
    schema = plain(tool.schema, tool.schema, converter.lost)
    fields = schema.get("properties", {}) if isinstance(schema, Mapping) else {}
    required = schema.get("required", []) if isinstance(schema, Mapping) else []
    if not isinstance(fields, Mapping) or not isinstance(required, list):
        raise UsageError("`properties` or `required` in the schema has the wrong form")
    fields = {**{str(key): True for key in required}, **fields}
    if not fields:
        return piece(form.empty)
    begun = fresh = ""
    for n, (key, field) in reversed(list(enumerate(fields.items()))):
        here = f"t{i}-pair-{n}"
        rules.append(f"{here} ::= {literal(key)} {_value(form, field, tool.schema, converter, key)}")
        first = f"{here} {begun}".strip()
        if key in required:
            fresh = first
            body = f"{piece(form.next)} {here} {begun}"
        else:
            fresh = f"{first} | {fresh}" if fresh else first
            body = f"({piece(form.next)} {here})? {begun}"
        rules += [f"t{i}-next-{n} ::= {body}", f"t{i}-first-{n} ::= {fresh}"]
        begun, fresh = f"t{i}-next-{n}", f"t{i}-first-{n}"
    some = f"{piece(form.neck)} {fresh} {piece(form.tail)}"
    return some if required else f"({some} | {piece(form.empty)})"


def _value(form: Form, field: Any, document: Any, converter: Converter, key: str) -> str:
    middle, middle_json = piece(form.middle), piece(form.middle_json)
    schema = plain(field, document, converter.lost)
    listed = (
        schema.get("enum", [schema["const"]] if "const" in schema else None) if isinstance(schema, Mapping) else None
    )
    if isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed):
        stop = value_end(form)
        if not any(stop in one for one in listed):
            return f"{middle} ({' | '.join(map(literal, listed))})"
    if "string" not in kinds_of(field, document):
        return f"{middle_json} {converter.rule(field, key)}"
    if isinstance(schema, Mapping):
        for keyword in ("pattern", "minLength", "maxLength", "format"):
            if keyword in schema:
                converter.lost(keyword, "this model writes strings as they are")
    return f"{middle} raw-0"


def kinds_of(schema: Any, document: Any, depth: int = 0) -> set[str]:
    """The types that a value of a schema may have."""
    try:
        schema = plain(schema, document, lambda keyword, why: None)
        while isinstance(schema, Mapping) and "$ref" in schema and depth < 8:
            schema, depth = plain(find(document, schema["$ref"]), document, lambda keyword, why: None), depth + 1
    except UsageError:
        return {"string"}
    if not isinstance(schema, Mapping):
        return {"string", "null", "number", "boolean", "object", "array"}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and depth < 8:
            return set().union(*(kinds_of(choice, document, depth + 1) for choice in schema[key]))
    if "enum" in schema or "const" in schema:
        listed = schema.get("enum", [schema.get("const")])
        return {"string" if isinstance(one, str) else "other" for one in listed} if isinstance(listed, list) else set()
    if "type" not in schema and ("properties" in schema or "items" in schema):
        return {"object" if "properties" in schema else "array"}
    return set(types_of(schema))


# ---------------------------------------------------------------- reading


class CallReader:
    """Splits a model's text into words and calls as it comes. Text that may be the beginning of a call is held back."""

    def __init__(self, form: Form = HERMES, tools: Sequence[Known] = (), *, most: int | None = None) -> None:
        """tools: say which values are strings. most: calls that are taken; what the model goes on with is dropped."""
        self.n_call = 0
        self._form = form
        self._tools = {tool.name: tool.schema for tool in tools}
        self._most = most
        self._held = ""
        self._inside = False
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

    def feed(self, text: str) -> Iterator[str | Call]:
        self._held += text
        while True:
            before = (self._held, self._inside)
            yield from self._inner() if self._inside else self._outer()
            if (self._held, self._inside) == before:
                return

    def made(self, name: str, arguments: str) -> Iterator[Call]:
        """A call that was told apart already."""
        try:
            found = json.loads(arguments)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict):
            yield from self._take(name, found)

    def _take(self, name: str, arguments: Mapping[str, Any]) -> Iterator[Call]:
        self._made += 1
        if self._most is None or self.n_call < self._most:
            self.n_call += 1
            yield Call(name, json.dumps(arguments, ensure_ascii=False))

    def _outer(self) -> Iterator[str | Call]:
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

    def _inner(self) -> Iterator[str | Call]:
        """One more call, or the end of them."""
        if self._made and not self._may_go_on():
            end = self._end.match(self._held)
            self._held, self._inside = self._held[end.end() if end else 0 :], False
            return
        head = (self._between if self._made and self._between else self._name).match(self._held)
        call = self._read(head[1], head.end()) if head else None
        if call:
            arguments, at = call
            self._held = self._held[at:]
            yield from self._take(head[1] if head else "", arguments)
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

    def _read(self, name: str, at: int) -> tuple[dict[str, Any], int] | None:
        """Arguments from a place on, and where they end; None while they are not whole."""
        if self._form.tagged:
            return self._read_tagged(name, at)
        try:
            found, end = json.JSONDecoder(strict=False).raw_decode(self._held, at)
        except (ValueError, RecursionError):
            return None
        return (found, end) if isinstance(found, dict) else None

    def _read_tagged(self, name: str, at: int) -> tuple[dict[str, Any], int] | None:
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

    def _lenient(self, inside: str) -> Iterator[str | Call]:
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

    def finish(self) -> Iterator[str | Call]:
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


__all__ = ["Call", "CallReader", "Known", "after_thinking", "behind", "calls_grammar", "either", "until"]
