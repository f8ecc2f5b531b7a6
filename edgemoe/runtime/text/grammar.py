"""Turn a JSON schema into a llama.cpp grammar (GBNF) whose every text is JSON that the schema takes. Pure.

What a grammar cannot say is refused (strict), or left out where the caller can live with a wider grammar. Objects are
written with their properties in the schema's order, and with others only where `additionalProperties` asks for them.
Texts outside the grammar may satisfy the schema too: what counts is that none inside fails it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import UsageError

Schema = Mapping[str, Any]

JSON_RULES = {
    # Blanks where people who format JSON put them, and no more: small models, once in blanks, find no way out.
    "ws": '| " " | "\\n" " "{0,8}',
    "sp": '" "?',
    "char": '[^"\\\\\\x7F\\x00-\\x1F] | "\\\\" (["\\\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": '"\\"" char* "\\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (string ":" sp value ("," ws string ":" sp value)*)? ws "}"',
    "array": '"[" ws (value ("," ws value)*)? ws "]"',
}
"""Rules of JSON itself; `value` is any of it."""

_DATE = '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [1-2] [0-9] | "3" [0-1])'
_TIME = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
)
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}',
}
_TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")
# Keywords that say nothing about which values are allowed; `format` is one by default.
_NOTES = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "format",
     "$schema", "$id", "$comment", "$defs", "definitions", "discriminator", "strict", "nullable")
)  # fmt: skip
_OF_TYPE = {
    "string": frozenset(("minLength", "maxLength")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
    "number": frozenset(("minimum", "exclusiveMinimum")),
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
    "boolean": frozenset(),
    "null": frozenset(),
}
_MAX_DEPTH = 48
_MAX_RULES = 2000
_MAX_REPEAT = 1000  # llama.cpp refuses repetitions beyond 2,000
_MAX_RANGE = 1000  # integers that are spelled out one by one


def json_grammar() -> str:
    """Any JSON object."""
    return "\n".join(["root ::= ws object", *rules_text(JSON_RULES)])


def schema_grammar(schema: Any, *, strict: bool = True) -> str:
    """The grammar of a schema. strict: refuse what a grammar cannot hold (`pattern`, `uniqueItems`, ...).

    Raises UsageError for what is no schema, is too large, or is refused.
    """
    converter = Converter(schema, strict=strict)
    root = converter.rule(schema, "root-value")
    return "\n".join([f"root ::= ws {root}", *converter.lines()])


def rules_text(rules: Mapping[str, str]) -> Iterable[str]:
    """Lines of GBNF."""
    return (f"{name} ::= {body}" for name, body in rules.items())


def literal(text: str) -> str:
    """A GBNF literal of a text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return '"' + escaped.replace("\t", "\\t").replace("\0", "\\x00") + '"'


class Converter:
    """Collects the rules of the schemas of one document."""

    def __init__(self, document: Any, *, strict: bool, prefix: str = "s") -> None:
        """document: what `$ref` looks into. prefix: of the names of its rules, where there are several documents."""
        self._document = document
        self._prefix = prefix
        self._strict = strict
        self._rules = dict(JSON_RULES)
        self._references: dict[str, str] = {}
        self._depth = 0

    def lines(self) -> Iterable[str]:
        """All rules so far, JSON's own included."""
        return rules_text(self._rules)

    def own_lines(self) -> Iterable[str]:
        """The rules so far but JSON's own."""
        return rules_text({name: body for name, body in self._rules.items() if name not in JSON_RULES})

    def rule(self, schema: Any, name: str) -> str:
        """The name of a rule for a schema, made after `name`."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UsageError(f"the schema is nested deeper than {_MAX_DEPTH} levels")
        body = self._body(schema, re.sub(r"[^a-zA-Z0-9-]+", "-", name)[:60])
        self._depth -= 1
        return body if body in JSON_RULES else self._add(name, body)

    def _add(self, name: str, body: str) -> str:
        if len(self._rules) >= _MAX_RULES:
            raise UsageError(f"the schema makes more than {_MAX_RULES} grammar rules")
        stem = f"{self._prefix}-" + re.sub(r"[^a-zA-Z0-9-]+", "-", name)[:60]
        key = stem if stem not in self._rules else f"{stem}-{len(self._rules)}"
        self._rules[key] = body or '""'
        return key

    def _body(self, schema: Any, name: str) -> str:
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise UsageError(f"`{schema!r:.60}` is not a JSON schema", hint="a schema is an object")
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._union(schema, key, name)
        if "allOf" in schema:
            return self._body(self._merged(schema), name)
        if "const" in schema:
            return _constant(schema["const"])
        if "enum" in schema:
            if not isinstance(schema["enum"], list) or not schema["enum"]:
                raise UsageError("`enum` in the schema lists no values")
            return " | ".join(map(_constant, schema["enum"]))
        kinds = self._kinds(schema)
        self._refuse_unknown(schema, kinds)
        bodies = [self._of_kind(schema, kind, name) for kind in kinds]
        return bodies[0] if len(bodies) == 1 else " | ".join(f"({body})" for body in bodies)

    def _kinds(self, schema: Schema) -> list[str]:
        kinds = schema.get("type")
        if kinds is None:
            # A schema without a type that speaks of one kind of value means that kind.
            kinds = [kind for kind, words in _OF_TYPE.items() if words & schema.keys()][:1] or list(_TYPES)
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or not kinds or any(kind not in _TYPES for kind in kinds):
            raise UsageError(f"`{kinds!r:.60}` is not a type of a JSON schema", hint=f"types are {', '.join(_TYPES)}")
        return [*kinds, "null"] if schema.get("nullable") is True and "null" not in kinds else kinds

    def _refuse_unknown(self, schema: Schema, kinds: Iterable[str]) -> None:
        known = _NOTES.union({"type"}, *(_OF_TYPE[kind] for kind in kinds))
        unknown = sorted(schema.keys() - known)
        if unknown and self._strict:
            raise UsageError(
                f"`{unknown[0]}` in a schema cannot be promised", hint="leave it out, or check it in the answer"
            )

    def _of_kind(self, schema: Schema, kind: str, name: str) -> str:
        if kind == "object":
            return self._object(schema, name)
        if kind == "array":
            return self._array(schema, name)
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            return self._number(schema, kind)
        return kind

    # ---------------------------------------------------------------- references and combinations

    def _reference(self, reference: Any) -> str:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UsageError(f"`$ref` to `{reference!r:.60}` leads out of the schema", hint="use `#/$defs/NAME`")
        if reference not in self._references:
            rule = self._add(f"ref-{reference.rsplit('/', 1)[-1]}", "")
            self._references[reference] = rule  # before its body is made: it may refer to itself
            self._rules[rule] = self.rule(self._find(reference), f"of-{rule[2:]}")
            if self._only_itself(rule):
                raise UsageError(f"`{reference}` in the schema is nothing but itself")
        return self._references[reference]

    def _only_itself(self, rule: str) -> bool:
        seen, at = {rule}, self._rules[rule]
        while at in self._rules:
            if at in seen:
                return True
            seen.add(at)
            at = self._rules[at]
        return False

    def _find(self, reference: str) -> Any:
        found = self._document
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise UsageError(f"`$ref` to `{reference:.80}`: the schema has no such part")
            found = found[key]
        return found

    def _union(self, schema: Schema, key: str, name: str) -> str:
        choices = schema[key]
        if not isinstance(choices, list) or not choices:
            raise UsageError(f"`{key}` in the schema lists no schemas")
        beside = schema.keys() - _NOTES - {key}
        if beside == {"type"}:
            beside = set()  # common, and says nothing that the choices do not
        if beside and self._strict:
            raise UsageError(f"`{sorted(beside)[0]}` beside `{key}` in a schema cannot be promised")
        names = [self.rule(choice, f"{name}-{i}") for i, choice in enumerate(choices)]
        return " | ".join([*names, "null"] if schema.get("nullable") is True else names)

    def _merged(self, schema: Schema) -> dict[str, Any]:
        """allOf of objects: their properties together."""
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        parts = schema["allOf"]
        if not isinstance(parts, list) or not parts:
            raise UsageError("`allOf` in the schema lists no schemas")
        for part in parts:
            for _ in range(_MAX_DEPTH):
                if not (isinstance(part, Mapping) and "$ref" in part):
                    break
                part = self._find(str(part["$ref"]))
            if not isinstance(part, Mapping):
                raise UsageError(f"`{part!r:.60}` is not a JSON schema", hint="a schema is an object")
            for key, value in part.items():
                if key == "properties" and isinstance(value, Mapping):
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required" and isinstance(value, list):
                    merged[key] = [*merged.get(key, []), *value]
                elif key not in merged or key in _NOTES or merged[key] == value:
                    merged.setdefault(key, value)
                elif self._strict:
                    raise UsageError(f"`allOf` with two different `{key}` cannot be promised")
        if "allOf" in merged and merged["allOf"] == parts:
            raise UsageError("`allOf` in the schema is nothing but itself")
        return merged

    # ---------------------------------------------------------------- kinds of values

    def _object(self, schema: Schema, name: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise UsageError("`properties` or `required` in the schema has the wrong form")
        more = schema.get("additionalProperties", not properties)
        fields = dict(properties)
        for key in required:
            if key not in fields:
                if more is False:
                    raise UsageError(f"`{key!r:.60}` is required by the schema and not allowed by it")
                fields[str(key)] = more
        if not fields and more is True:
            return "object"
        pairs = [
            (
                f'{_constant(str(key))} ":" sp {self.rule(value, f"{name}-{key}")}',
                key in required,
            )
            for key, value in fields.items()
        ]
        others = ""
        if more is not False:
            others = self._add(f"{name}-other", f'string ":" sp {self.rule(more, f"{name}-others")}')
        return f'"{{" ws {self._members(pairs, others, name)} ws "}}"'

    def _members(self, pairs: list[tuple[str, bool]], others: str, name: str) -> str:
        """Pairs in order, optional ones left out or not, commas between: one rule for each place in the list."""
        begun = self._add(f"{name}-more", f'("," ws {others})*' if others else "")
        fresh = self._add(f"{name}-any", f'({others} ("," ws {others})*)?' if others else "")
        for pair, required in reversed(pairs):
            here = self._add(f"{name}-pair", pair)
            if required:
                fresh = self._add(f"{name}-first", f"{here} {begun}")
                begun = self._add(f"{name}-next", f'"," ws {here} {begun}')
            else:
                fresh = self._add(f"{name}-first", f"{here} {begun} | {fresh}")
                begun = self._add(f"{name}-next", f'("," ws {here})? {begun}')
        return fresh

    def _array(self, schema: Schema, name: str) -> str:
        first, items = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(items, list):  # before draft 2020 a tuple was written so
            first, items = items, True
        if not isinstance(first, list):
            raise UsageError("`prefixItems` in the schema is not a list")
        least, most = _bounds(schema, "minItems", "maxItems")
        if first:
            rules = [self.rule(item, f"{name}-{i}") for i, item in enumerate(first)]
            if least > len(first) and self._strict:
                raise UsageError("`minItems` beyond `prefixItems` in a schema cannot be promised")
            kept = rules if most is None else rules[:most]
            return '"[" ws ' + ' "," ws '.join(kept) + ' ws "]"'
        item = self.rule(items, f"{name}-item") if items is not False else ""
        if items is False or most == 0:
            return '"[" ws "]"'
        rest = _repeat(f'"," ws {item}', max(0, least - 1), None if most is None else most - 1)
        inside = f"{item} {rest}".strip()
        return f'"[" ws {inside if least else f"({inside})?"} ws "]"'

    def _string(self, schema: Schema) -> str:
        form = schema.get("format")
        if isinstance(form, str) and form in _FORMATS:
            return f'"\\"" {_FORMATS[form]} "\\""'
        least, most = _bounds(schema, "minLength", "maxLength")
        if least == 0 and most is None:
            return "string"
        return f'"\\"" {_repeat("char", least, most)} "\\""'

    def _number(self, schema: Schema, kind: str) -> str:
        low, high = (_limit(schema, *names) for names in _LIMITS)
        if low is None and high is None:
            return kind
        if kind == "integer" and low is not None and high is not None and -1 <= high - low <= _MAX_RANGE:
            if high < low:
                raise UsageError(f"no integer is at least {low} and at most {high}, as the schema wants")
            return " | ".join(literal(str(value)) for value in range(low, high + 1))
        if high is None and low in (0, 1):
            if kind == "integer":
                return "[1-9] [0-9]{0,15}" if low == 1 else '"0" | [1-9] [0-9]{0,15}'
            if low == 0 and "exclusiveMinimum" not in schema:
                return '("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})?'
        if self._strict:
            raise UsageError(
                f"the bounds of `{kind}` in a schema cannot be promised",
                hint=f"integers may have bounds up to {_MAX_RANGE:,} apart, or a minimum of 0 or 1",
            )
        return kind


_LIMITS = (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1))


def _limit(schema: Schema, name: str, exclusive: str, step: int) -> int | None:
    """An integer bound, inclusive; a bound that is no whole number is moved inwards."""
    found = []
    for key, shift in ((name, 0), (exclusive, step)):
        value = schema.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) > 1e15:
            raise UsageError(f"`{key}` in the schema is not a number")
        whole = int(value)
        if whole != value:
            found.append(whole + (value > 0) if step > 0 else whole - (value < 0))
        else:
            found.append(whole + shift)
    return (max if step > 0 else min)(found) if found else None


def _bounds(schema: Schema, low: str, high: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    for key, value in ((low, least), (high, most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise UsageError(f"`{key}` in the schema is not a whole number")
    if max(least, most or 0) > _MAX_REPEAT:
        raise UsageError(f"`{low}` and `{high}` in a schema can be at most {_MAX_REPEAT:,}")
    if most is not None and most < least:
        raise UsageError(f"`{low}` in the schema is above `{high}`")
    return least, most


def _repeat(item: str, least: int, most: int | None) -> str:
    if most == 0:
        return ""
    bounds = f"{{{least},}}" if most is None else f"{{{least},{most}}}"
    return f"({item}){'*' if (least, most) == (0, None) else bounds}"


def _constant(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can say it
        text = json.dumps(value)
    return literal(text)
