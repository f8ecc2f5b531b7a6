"""Calls of tools in the form of a model: what a call is, and the grammar that calls follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..runtime.text.gbnf import JSON_RULES, in_class, literal, rules_text
from ..runtime.text.grammar import Converter
from ..runtime.text.schema import find, plain, types_of
from ..runtime.text.thinking import Thinking
from .forms import Form, piece, value_end


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
