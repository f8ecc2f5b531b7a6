"""Turn a JSON schema into a llama.cpp grammar (GBNF) whose every text is JSON that the schema takes. Pure.

What a grammar cannot say is refused (strict), or left out and noted. Objects are written with their properties in the
schema's order, and with others only where `additionalProperties` asks for them. Texts outside the grammar may satisfy
the schema too: what counts is that none inside fails it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...errors import UsageError
from . import patterns, ranges
from .gbnf import JSON_RULES, MAX_COUNT, Rules, constant, literal, rules_text
from .schema import NOTES, OF_TYPE, Schema, alternatives, disjoint, find, key_of, plain, says, takes, types_of

_DATE = '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
_TIME = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
)
_OCTET = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9] [0-9] | [0-9])'
_LABEL = '[a-zA-Z0-9]{1,20} ("-" [a-zA-Z0-9]{1,20}){0,2}'
_HOST = f'{_LABEL} ("." {_LABEL}){{0,3}}'
_GROUP = "[0-9a-f]{1,4}"
_URI = f'[a-z] [a-z0-9+.-]{{0,12}} "://" {_HOST} (":" [1-9] [0-9]{{0,3}})? ("/" [a-zA-Z0-9._~!$&()*+,;=:@-]*)*'
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "duration": '"P" ([0-9]{1,6} "D" | "T" ([0-9]{1,6} "H")? ([0-9]{1,6} "M")? [0-9]{1,6} "S" | [0-9]{1,6} "W")',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}',
    "email": f'[a-zA-Z0-9_+-]{{1,32}} ("." [a-zA-Z0-9_+-]{{1,32}}){{0,3}} "@" {_LABEL} ("." {_LABEL}){{1,3}}',
    "hostname": _HOST,
    "ipv4": f'{_OCTET} ("." {_OCTET}){{3}}',
    "ipv6": f'{_GROUP} (":" {_GROUP}){{7}}',
    "uri": _URI,
    "uri-reference": _URI,
    "iri": _URI,
}
# Formats of numbers are notes to those who store them.
_NO_FORMATS = ("int32", "int64", "float", "double", "decimal", "password", "binary", "byte")
_HELD = frozenset(("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "nullable"))
_MAX_DEPTH = 48
_MAX_S = 5


def json_grammar() -> str:
    """Any JSON object."""
    return "\n".join(["root ::= ws object", *rules_text(JSON_RULES)])


def schema_grammar(schema: Any, *, strict: bool = True, notes: list[str] | None = None) -> str:
    """The grammar of a schema. strict: refuse what a grammar cannot hold (`uniqueItems`, `not`, ...).

    notes: receives what is not held, where that is not refused.
    Raises UsageError for what is no schema, is too large, or is refused.
    """
    converter = Converter(schema, strict=strict)
    root = converter.rule(schema, "root-value")
    if notes is not None:
        notes += converter.notes
    return "\n".join([f"root ::= ws {root}", *converter.lines()])


class Converter:
    """Collects the rules of the schemas of one document. notes: what of them is not held, each once."""

    def __init__(self, document: Any, *, strict: bool, prefix: str = "s") -> None:
        """document: what `$ref` looks into. prefix: of the names of its rules, where there are several documents."""
        self.notes: list[str] = []
        self._document = document
        self._strict = strict
        self._rules = Rules(prefix)
        self._known: dict[str, str] = {}
        self._depth = 0
        self._deadline = time.monotonic() + _MAX_S

    def lines(self) -> Iterable[str]:
        """All rules so far, JSON's own included."""
        return (*rules_text(JSON_RULES), *self._rules.lines())

    def own_lines(self) -> Iterable[str]:
        """The rules so far but JSON's own."""
        return self._rules.lines()

    def rule(self, schema: Any, name: str) -> str:
        """The name of a rule for a schema, made after `name`."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UsageError(f"the schema is nested deeper than {_MAX_DEPTH} levels")
        if time.monotonic() > self._deadline:
            raise UsageError(f"the schema takes more than {_MAX_S} s to turn into a grammar", hint="use a smaller one")
        try:
            if isinstance(schema, Mapping) and (says(schema) & {"$ref", "allOf"}):
                return self._shared(schema, name)
            body = self._body(schema, name)
            return body if body in JSON_RULES else self._rules.add(name, body)
        finally:
            self._depth -= 1

    def _shared(self, schema: Schema, name: str) -> str:
        """One rule for one schema that refers to others: it may lead back to itself."""
        if says(schema) == {"$ref"}:
            schema = {"$ref": schema["$ref"]}
            name = f"ref-{str(schema['$ref']).rsplit('/', 1)[-1]}"
        key = key_of(schema)
        if key not in self._known:
            rule = self._known[key] = self._rules.add(name, "")  # before its body is made
            simple = find(self._document, schema["$ref"]) if says(schema) == {"$ref"} else schema
            self._rules.replace(rule, self._body(simple, name))
            if self._only_itself(rule):
                raise UsageError(f"`{schema.get('$ref', 'allOf')}` in the schema is nothing but itself")
        return self._known[key]

    def _only_itself(self, rule: str) -> bool:
        seen, at = {rule}, self._rules[rule]
        while at in self._rules:
            if at in seen:
                return True
            seen.add(at)
            at = self._rules[at]
        return False

    def lost(self, keyword: str, why: str) -> None:
        """A keyword that is not held: refused or noted."""
        if self._strict:
            raise UsageError(
                f"`{keyword}` in a schema cannot be promised: {why}", hint="leave it out, or check it in the answer"
            )
        note = f"`{keyword}` is not held: {why}"
        if note not in self.notes:
            self.notes.append(note)

    def _body(self, schema: Any, name: str) -> str:
        schema = plain(schema, self._document, self.lost)
        if schema is True or schema == {}:
            return "value"
        if schema is False:
            raise UsageError("a part of the schema takes no value at all")
        if "$ref" in schema:
            return self.rule(schema, name)
        if "const" in schema or "enum" in schema:
            return self._values(schema)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._union(schema, key, name)
        kinds = self._kinds(schema)
        self._look_through(schema, kinds)
        bodies = [self._of_kind(schema, kind, name) for kind in kinds]
        return bodies[0] if len(bodies) == 1 else " | ".join(f"({body})" for body in bodies)

    def _kinds(self, schema: Schema) -> list[str]:
        if "type" in schema:
            return types_of(schema)
        # A schema without a type that speaks of one kind of value means that kind.
        meant = [kind for kind, words in OF_TYPE.items() if words & schema.keys()][:1]
        meant = ["number"] if meant == ["integer"] else meant
        if meant:
            return [*meant, "null"] if schema.get("nullable") is True else meant
        return [kind for kind in types_of(schema) if kind != "integer"]

    def _look_through(self, schema: Schema, kinds: Iterable[str]) -> None:
        """What of these keywords is not held; those of other kinds of values mean nothing here."""
        other = frozenset().union(*OF_TYPE.values()) - frozenset().union(*(OF_TYPE[kind] for kind in kinds))
        for key in sorted(schema.keys() - NOTES - _HELD - other):
            if key in _SOMETIMES:
                if _SOMETIMES[key](schema[key]):
                    self.lost(key, "a grammar cannot hold it")
            elif key not in _DONE:
                self.lost(key, "it is not known here" if key not in _UNHELD else "a grammar cannot hold it")

    def _of_kind(self, schema: Schema, kind: str, name: str) -> str:
        if kind == "object":
            return self._object(schema, name)
        if kind == "array":
            return self._array(schema, name)
        if kind == "string":
            return self._string(schema)
        if kind == "integer":
            return ranges.integers(schema) or kind
        if kind == "number":
            return ranges.numbers(schema) or kind
        return kind

    def _values(self, schema: Schema) -> str:
        """The values that `const` and `enum` list and the rest of the schema takes."""
        listed = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(listed, list) or not listed:
            raise UsageError("`enum` in the schema lists no values")
        if "pattern" in schema:
            self.lost("pattern", "it stands beside values")  # what it takes could take for ever to find out
        if "format" in schema and schema["format"] not in _NO_FORMATS:
            self.lost("format", "it stands beside values")
        rest = {key: value for key, value in schema.items() if key not in ("enum", "pattern", "format")}
        try:
            found = [value for value in listed if not says(rest) or takes(rest, value, self._document)]
        except TypeError:
            raise UsageError("a keyword beside `enum` or `const` in the schema has the wrong form") from None
        if not found:
            raise UsageError("no value of `enum` or `const` in the schema goes with what stands beside it")
        if schema.get("nullable") is True and None not in found:
            found.append(None)
        return self._rules.one_of([constant(value) for value in found])

    def _union(self, schema: Schema, key: str, name: str) -> str:
        choices = alternatives(schema, key)
        if key == "oneOf" and not disjoint(choices, self._document):
            self.lost("oneOf", "its schemas may hold at once")
        simple = [plain(choice, self._document, self.lost) for choice in choices]
        names = [self.rule(choice, f"{name}-{i}") for i, choice in enumerate(simple) if choice is not False]
        if not names:
            raise UsageError(f"no schema of `{key}` takes a value")
        if schema.get("nullable") is True:
            names.append("null")
        return " | ".join(dict.fromkeys(names))

    # ---------------------------------------------------------------- kinds of values

    def _object(self, schema: Schema, name: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise UsageError("`properties` or `required` in the schema has the wrong form")
        more = schema.get("additionalProperties", not properties)
        fields = {str(key): plain(value, self._document, self.lost) for key, value in properties.items()}
        for key in required:
            if fields.get(key, more) is False:
                raise UsageError(f"`{key!r:.60}` is required by the schema and not allowed by it")
            fields.setdefault(str(key), more)
        if not fields and more is True:
            return "object"
        pairs = [
            (f'{literal(constant(key))} ":" sp {self.rule(value, f"{name}-{key}")}', key in required)
            for key, value in fields.items()
            if value is not False
        ]
        others = ""
        if more is not False:
            key_rule = self._rules.other_key(fields)
            others = self._rules.add(f"{name}-other", f'{key_rule} ":" sp {self.rule(more, f"{name}-others")}')
        return f'"{{" ws {self._members(pairs, others, name)} ws "}}"'

    def _members(self, pairs: list[tuple[str, bool]], others: str, name: str) -> str:
        """Pairs in order, optional ones left out or not, commas between: one rule for each place in the list."""
        add = self._rules.add
        begun = add(f"{name}-more", f'("," ws {others})*' if others else "")
        fresh = add(f"{name}-any", f'({others} ("," ws {others})*)?' if others else "")
        for pair, required in reversed(pairs):
            here = add(f"{name}-pair", pair)
            if required:
                fresh = add(f"{name}-first", f"{here} {begun}")
                begun = add(f"{name}-next", f'"," ws {here} {begun}')
            else:
                fresh = add(f"{name}-first", f"{here} {begun} | {fresh}")
                begun = add(f"{name}-next", f'("," ws {here})? {begun}')
        return fresh

    def _array(self, schema: Schema, name: str) -> str:
        first, items = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(items, list):  # before draft 2020 a tuple was written so
            first, items = items, schema.get("additionalItems", True)
        if not isinstance(first, list):
            raise UsageError("`prefixItems` in the schema is not a list")
        least, most = _bounds(schema, "minItems", "maxItems")
        if first:
            return self._tuple(first, items, least, most, name)
        if items is False or most == 0:
            if least:
                raise UsageError("`minItems` in the schema asks for items that it does not allow")
            return '"[" ws "]"'
        item = self.rule(items, f"{name}-item")
        rest = self._rules.listed(f'"," ws {item}', max(0, least - 1), None if most is None else most - 1)
        inside = f"{item} {rest}".strip()
        return f'"[" ws {inside if least else f"({inside})?"} ws "]"'

    def _tuple(self, first: list[Any], items: Any, least: int, most: int | None, name: str) -> str:
        kept = first if most is None else first[:most]
        parts = [self.rule(item, f"{name}-{i}") for i, item in enumerate(kept)]
        if least > len(parts):  # more of the further items, as many as must be
            if items is False:
                raise UsageError("`minItems` in the schema asks for items that it does not allow")
            further = self._rules.listed(
                f'"," ws {self.rule(items, f"{name}-item")}', least - len(parts), least - len(parts)
            )
            return '"[" ws ' + ' "," ws '.join(parts) + f' {further} ws "]"'
        return '"[" ws ' + (' "," ws '.join(parts) + " " if parts else "") + 'ws "]"'

    def _string(self, schema: Schema) -> str:
        least, most = _bounds(schema, "minLength", "maxLength")
        form, pattern = schema.get("format"), schema.get("pattern")
        bounded = least > 0 or most is not None
        if isinstance(pattern, str):
            try:
                inside = patterns.inside(pattern, self._rules)
            except patterns.NotRegular as reason:
                self.lost("pattern", f"`{pattern:.60}` has {reason}")
            else:
                if bounded:
                    self.lost("minLength" if least else "maxLength", "it stands beside a `pattern`")
                if form is not None:
                    self.lost("format", "it stands beside a `pattern`")
                return f'"\\"" ({inside}) "\\""' if inside else '"\\"" "\\""'
        if isinstance(form, str) and form in _FORMATS:
            if bounded:
                self.lost("minLength" if least else "maxLength", f"it stands beside the `format` {form}")
            return f'"\\"" {_FORMATS[form]} "\\""'
        if form is not None and form not in _NO_FORMATS:
            self.lost("format", f"`{form!r:.40}` is not known here")
        if not bounded:
            return "string"
        return f'"\\"" {self._rules.counted("char", least, most)} "\\""'


_DONE = frozenset(
    ("properties", "required", "additionalProperties", "items", "prefixItems", "additionalItems", "minItems",
     "maxItems", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern",
     "format")
)  # fmt: skip
_UNHELD = frozenset(("not", "if", "then", "else", "patternProperties", "propertyNames", "contains", "minContains",
                     "maxContains", "dependentRequired", "dependentSchemas", "maxProperties"))  # fmt: skip
# Keywords that are held where they say little.
_SOMETIMES: dict[str, Callable[[Any], bool]] = {
    "uniqueItems": lambda value: value is True,
    "minProperties": lambda value: value != 0,
    "multipleOf": lambda value: True,
    "unevaluatedProperties": lambda value: value is not True,
    "unevaluatedItems": lambda value: value is not True,
}


def _bounds(schema: Schema, low: str, high: str) -> tuple[int, int | None]:
    least, most = (_whole(schema, name) for name in (low, high))
    if least is not None and least > MAX_COUNT:
        raise UsageError(f"`{low}` of {least:,} in the schema: no answer is that long")
    if most is not None and most < (least or 0):
        raise UsageError(f"`{low}` in the schema is above `{high}`")
    return least or 0, most


def _whole(schema: Schema, name: str) -> int | None:
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value < 0 or value % 1:
        raise UsageError(f"`{name}` in the schema is not a whole number")
    return int(min(value, 2**62))


__all__ = ["JSON_RULES", "Converter", "json_grammar", "literal", "rules_text", "schema_grammar"]
