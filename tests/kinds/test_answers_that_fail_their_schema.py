"""What a schema says is held, noted or refused: no keyword is dropped because of where it stands."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from edgemoe.errors import UsageError
from edgemoe.runtime.text import bounds
from edgemoe.runtime.text.grammar import schema_grammar

Ways = list[list[Any]]


class Writer:
    """Random texts of a grammar."""

    def __init__(self, grammar: str, seed: int) -> None:
        self._rules = bounds._parse(grammar)
        self._random = random.Random(seed)

    def text(self) -> str:
        return self._one(self._rules["root"], 0)

    def _one(self, ways: Ways, depth: int) -> str:
        pick = self._random.choice(ways) if depth < 12 else min(ways, key=lambda way: sum(i.least for i in way))
        return "".join(self._item(item, depth + 1) for item in pick)

    def _item(self, item: Any, depth: int) -> str:
        most = item.least + 2 if item.most is None else item.most
        n = item.least if depth > 12 else self._random.randint(item.least, min(most, item.least + 3))
        return "".join(self._single(item, depth) for _ in range(n))

    def _single(self, item: Any, depth: int) -> str:
        if depth > 200:
            raise RecursionError
        if item.refers:
            return self._one(self._rules[item.refers], depth)
        if item.ways is not None:
            return self._one(item.ways, depth)
        return _plain(item.source[1:-1]) if item.source.startswith('"') else self._of_class(item.source)

    def _of_class(self, source: str) -> str:
        spans = list(_spans(source[2:-1] if source.startswith("[^") else source[1:-1]))
        if not source.startswith("[^"):
            low, high = self._random.choice(spans)
            return chr(self._random.randint(low, min(high, low + 90)))
        while True:
            code = self._random.choice([self._random.randint(32, 126), self._random.randint(160, 500), 10])
            if not any(low <= code <= high for low, high in spans):
                return chr(code)


def _plain(text: str) -> str:
    known = {"n": "\n", "r": "\r", "t": "\t"}

    def char(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else known.get(code, code)

    return re.sub(r"\\(x..|u....|U.{8}|.)", char, text, flags=re.DOTALL)


def _spans(body: str) -> Iterator[tuple[int, int]]:
    chars = [(found[0], ord(_plain(found[0]))) for found in re.finditer(r"\\(?:x..|u....|U.{8}|.)|.", body, re.DOTALL)]
    i = 0
    while i < len(chars):
        if i + 2 < len(chars) and chars[i + 1][0] == "-":
            yield chars[i][1], chars[i + 2][1]
            i += 3
        else:
            yield chars[i][1], chars[i][1]
            i += 1


def closed(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "additionalProperties": False}


INTEGER, STRING = {"type": "integer"}, {"type": "string"}
HELD: list[Any] = [
    {"properties": {"a": INTEGER, "ab": INTEGER, "é": STRING}, "additionalProperties": True},
    {"properties": {"a": INTEGER}, "additionalProperties": {"type": "boolean"}, "required": ["z"]},
    {"$ref": "#/$defs/t", "minLength": 3, "$defs": {"t": {"type": "string", "maxLength": 5}}},
    {"properties": {"a": {"$ref": "#/$defs/t", "minLength": 3}}, "required": ["a"], "$defs": {"t": STRING}},
    {"type": "integer", "enum": ["x", 1, 2.5, 7, True]},
    {"enum": [1, 2, 3, "long enough", "no"], "minimum": 2, "minLength": 5},
    {"const": 4, "type": ["integer", "null"]},
    {"allOf": [closed(a=INTEGER, b=INTEGER), closed(b=INTEGER, c=INTEGER)]},
    {"allOf": [{"minimum": 3}, {"type": "integer", "maximum": 40}, {"exclusiveMaximum": 40}]},
    {"allOf": [{"properties": {"a": {"minLength": 2}}}, {"properties": {"a": STRING}, "required": ["a"]}]},
    {"type": "object", "required": ["k"], "anyOf": [{"properties": {"k": INTEGER}}, {"properties": {"k": STRING}}]},
    {"anyOf": [{"type": "string"}, {"type": "integer"}], "maxLength": 4, "minimum": 0, "maximum": 9},
    {"oneOf": [closed(t={"const": "a"}), {**closed(t={"const": "b"}), "required": ["t"]}], "required": ["t"]},
    {"properties": {"a": {"anyOf": [STRING, {"type": "null"}]}, "b": {"$ref": "#/properties/a/anyOf/0"}}},
    {"$ref": "#/$defs/a%20b", "$defs": {"a b": closed(n={"anyOf": [{"$ref": "#/$defs/a%20b"}, {"type": "null"}]})}},
    {"type": "string", "minLength": 2, "maxLength": 40},
    {"type": "string", "pattern": "^[A-Z]{2,20}-\\d+(\\.\\d)?$"},
    {"type": "string", "pattern": 'b[^"x]d|^q'},
    {"type": "string", "format": "email"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "ipv4"},
    {"type": "integer", "minimum": -12, "maximum": 1234},
    {"type": "integer", "exclusiveMinimum": 99, "exclusiveMaximum": 101},
    {"type": "integer", "minimum": 10**6},
    {"type": "number", "minimum": -0.5, "exclusiveMaximum": 0.25},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "array", "items": INTEGER, "minItems": 3, "maxItems": 20},
    {"type": "array", "prefixItems": [INTEGER], "items": STRING, "minItems": 3},
]


@pytest.mark.parametrize("schema", HELD, ids=lambda schema: json.dumps(schema)[:60])
def test_every_text_satisfies_its_schema(schema: Any) -> None:
    rs = pytest.importorskip("jsonschema_rs")
    validator = rs.validator_for(schema, validate_formats=True)
    grammar, n = schema_grammar(schema), 0
    bounds.check(grammar)
    writer = Writer(grammar, 1)
    for _ in range(60):
        try:
            value = json.loads(writer.text())
        except RecursionError:
            continue
        n += 1
        assert validator.is_valid(value), value
    assert n > 20


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"properties": {"a": {"type": "array", "items": {"not": INTEGER}}}}, "not"),
        ({"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$"}]}, "pattern"),
        ({"$ref": "#/$defs/t", "multipleOf": 3, "$defs": {"t": INTEGER}}, "multipleOf"),
        ({"anyOf": [STRING], "propertyNames": {}, "type": "object", "properties": {}}, "propertyNames"),
        ({"type": "object", "patternProperties": {"^a": INTEGER}}, "patternProperties"),
        ({"enum": ["ab"], "pattern": "^a"}, "pattern"),
    ],
)
def test_what_no_grammar_holds_is_noted_or_with_strict_refused(schema: Any, keyword: str) -> None:
    if keyword != "propertyNames":
        notes: list[str] = []
        schema_grammar(schema, strict=False, notes=notes)
        assert any(f"`{keyword}`" in note for note in notes)
    with pytest.raises(UsageError):
        schema_grammar(schema)


def bomb(n: int, **each: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"k{i}": each for i in range(n)}}


def nest(depth: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"d{depth}": INTEGER}
    for i in range(depth):
        below = {"$ref": f"#/$defs/d{i + 1}"}
        definitions[f"d{i}"] = {"anyOf": [below, {"anyOf": [below, {"type": "array", "items": below}]}]}
    return {"$ref": "#/$defs/d0", "$defs": definitions}


@pytest.mark.parametrize(
    "schema",
    [
        bomb(100, type="array", items=STRING, maxItems=1000),
        bomb(100, type="array", items={"type": "array", "items": STRING, "maxItems": 1000}, maxItems=1000),
        bomb(9000, type="string"),
        nest(40),
        {"allOf": [{"anyOf": [{"type": "integer", "minimum": i * 10 + j} for j in range(20)]} for i in range(6)]},
        {"enum": list(range(200_000))},
        {"type": "string", "pattern": "(a|b)?" * 2000},
    ],
)
def test_a_bomb_is_refused_in_words_before_anything_is_computed(schema: Any) -> None:
    begin = time.monotonic()
    with pytest.raises(UsageError):
        bounds.check(schema_grammar(schema))
    assert time.monotonic() - begin < 20


def test_long_strings_cost_a_few_rules() -> None:
    schema = bomb(100, type="string", maxLength=100_000, minLength=7)
    grammar = schema_grammar(schema)
    bounds.check(grammar)
    assert len(grammar) < 60_000 and len(grammar.splitlines()) < 800


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= "
        + " ".join(f"s{i}" for i in range(60))
        + "".join(f'\ns{i} ::= ("a" "b"){{0,2000}}' for i in range(60)),
        "root ::= " + " | ".join(f'"{i}"' for i in range(3000)),
        'root ::= "a"{0,999999}',
        "root ::= a0" + "".join(f'\na{i} ::= a{i + 1} | "x"? a{i + 1}' for i in range(40)) + '\na40 ::= "z"',
        'root ::= "a"' + " " * 300_000,
    ],
)
def test_a_grammar_that_explodes_is_refused_in_words(grammar: str) -> None:
    with pytest.raises(UsageError, match="grammar"):
        bounds.check(grammar)
