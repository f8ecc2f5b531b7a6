"""JSON schemas as grammars: what is refused, and what texts look like that come out (tests/test_constraints.py)."""

from __future__ import annotations

from typing import Any

import pytest

from edgemoe.errors import UsageError
from edgemoe.runtime.text.grammar import literal, schema_grammar


def rules(schema: Any, *, strict: bool = True) -> dict[str, str]:
    lines = schema_grammar(schema, strict=strict).splitlines()
    return {name: body for name, _, body in (line.partition(" ::= ") for line in lines)}


def test_a_literal_says_every_character() -> None:
    assert literal('a"b\\c\n\t') == '"a\\"b\\\\c\\n\\t"'


def test_simple_types_are_json_rules() -> None:
    assert rules({"type": "string"})["root"] == "ws string"
    assert rules({})["root"] == "ws value"
    assert rules(True)["root"] == "ws value"


def test_properties_keep_their_order_and_required_ones_are_not_optional() -> None:
    found = rules({"properties": {"b": {"type": "null"}, "a": {"type": "null"}}, "required": ["b"]})
    texts = "\n".join(f"{name} {body}" for name, body in found.items())
    assert '"\\"b\\"" ":" sp null' in texts and '"\\"a\\"" ":" sp null' in texts
    assert not any("string" in body for name, body in found.items() if name.startswith("s-"))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (7, "not a JSON schema"),
        ({"type": "text"}, "not a type"),
        ({"type": "string", "pattern": "a(?=b)"}, "`pattern`"),
        ({"type": "string", "pattern": "^a$", "minLength": 3}, "`minLength`"),
        ({"type": "string", "format": "regex"}, "`format`"),
        ({"type": "string", "x-mine": 1}, "`x-mine`"),
        ({"not": {"type": "string"}}, "`not`"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "`oneOf`"),
        ({"type": "array", "uniqueItems": True}, "`uniqueItems`"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer"),
        ({"type": "number", "minimum": 3, "exclusiveMaximum": 3}, "no number"),
        ({"enum": []}, "lists no values"),
        ({"anyOf": []}, "lists no schemas"),
        ({"anyOf": [{"type": "null"}], "type": "string"}, "no alternative"),
        ({"enum": ["a", "b"], "minLength": 2}, "no value"),
        ({"$ref": "#/$defs/x"}, "no such part"),
        ({"$ref": "https://example.com/schema"}, "leads out"),
        ({"$ref": "#"}, "nothing but itself"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "above"),
        ({"type": "string", "minLength": 10**9}, "no answer is that long"),
        ({"type": "array", "maxItems": 10**9}, "more than 4,000 items"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "not allowed by it"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "takes no value"),
    ],
)
def test_what_a_grammar_cannot_promise_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        schema_grammar(schema)


def test_a_wider_grammar_is_made_for_those_who_can_live_with_it() -> None:
    notes: list[str] = []
    found = schema_grammar({"type": "string", "pattern": "a(?=b)"}, strict=False, notes=notes)
    assert found.startswith("root ::= ws string\n")
    assert len(notes) == 1 and "`pattern`" in notes[0] and "a(?=b)" in notes[0]


def test_a_schema_cannot_grow_without_end() -> None:
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="nested deeper"):
        schema_grammar(deep)
    with pytest.raises(UsageError, match="grammar rules"):
        schema_grammar({"properties": {f"k{i}": {"type": "array", "items": {"const": i}} for i in range(2000)}})
