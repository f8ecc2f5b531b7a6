"""The algebra of JSON schemas: references, what two schemas take together, whether one takes a value. Pure.

`together` gives a schema that takes nothing that one of the two refuses. What it cannot unite goes to `lost`, which
notes it or raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from ...errors import UsageError
from . import ranges

Schema = Mapping[str, Any]
Lost = Callable[[str, str], None]
"""Takes a keyword and why it cannot be held."""

TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")
# Keywords that say nothing about which values are allowed.
NOTES = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
     "$comment", "$anchor", "$defs", "definitions", "discriminator", "strict", "contentMediaType", "contentEncoding")
)  # fmt: skip
OF_TYPE = {
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "object": frozenset(
        ("properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
         "maxProperties", "unevaluatedProperties", "dependentRequired", "dependentSchemas")
    ),
    "array": frozenset(
        ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains",
         "additionalItems", "unevaluatedItems")
    ),
    "boolean": frozenset(),
    "null": frozenset(),
}  # fmt: skip
_MAX_HOPS = 48  # references that lead to references
_MAX_CHOICES = 256  # alternatives of alternatives, multiplied out


def find(document: Any, reference: Any) -> Any:
    """What a `$ref` points at (RFC 6901). Raises UsageError."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise UsageError(f"`$ref` to `{reference!r:.60}` leads out of the schema", hint="use `#/$defs/NAME`")
    pointer = _unquoted(reference[1:])
    if pointer and not pointer.startswith("/"):
        return _anchored(document, pointer, reference)
    found = document
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list) and re.fullmatch("0|[1-9][0-9]{0,6}", key) and int(key) < len(found):
            found = found[int(key)]
        else:
            raise UsageError(f"`$ref` to `{reference:.80}`: the schema has no such part")
    return found


def _unquoted(text: str) -> str:
    from urllib.parse import unquote

    return unquote(text) if "%" in text else text


def _anchored(document: Any, name: str, reference: str) -> Any:
    pending, n_seen = [document], 0
    while pending and n_seen < 100_000:
        at, n_seen = pending.pop(), n_seen + 1
        if isinstance(at, Mapping):
            if at.get("$anchor") == name:
                return at
            pending += at.values()
        elif isinstance(at, list):
            pending += at
    raise UsageError(f"`$ref` to `{reference:.80}`: the schema has no such part")


def says(schema: Schema) -> set[str]:
    """The keywords of a schema that matter."""
    return set(schema.keys() - NOTES)


def plain(schema: Any, document: Any, lost: Lost) -> Any:
    """A schema without `$ref` beside others, `allOf`, and alternatives beside others: True, False or a mapping.

    A `$ref` alone stays. Raises UsageError.
    """
    for _ in range(_MAX_HOPS):
        if schema is True or schema is False:
            return schema
        if not isinstance(schema, Mapping):
            raise UsageError(f"`{schema!r:.60}` is not a JSON schema", hint="a schema is an object")
        words = says(schema)
        if "$ref" in schema and words != {"$ref"}:
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = together(find(document, schema["$ref"]), rest, document, lost)
        elif "allOf" in schema:
            parts = schema["allOf"]
            if not isinstance(parts, list) or not parts:
                raise UsageError("`allOf` in the schema lists no schemas")
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            merged: Any = rest if says(rest) else True
            for part in parts:
                merged = together(merged, part, document, lost)
            schema = merged
        elif (choices := _choices(schema)) and words - set(choices) - {"nullable"}:
            schema = _multiplied(schema, choices, document, lost)
        else:
            return schema
    raise UsageError("a `$ref` or `allOf` in the schema is nothing but itself")


def _choices(schema: Schema) -> list[str]:
    return [key for key in ("anyOf", "oneOf") if key in schema]


def alternatives(schema: Schema, key: str) -> list[Any]:
    """Raises UsageError."""
    found = schema[key]
    if not isinstance(found, list) or not found:
        raise UsageError(f"`{key}` in the schema lists no schemas")
    return found


def _multiplied(schema: Schema, keys: list[str], document: Any, lost: Lost) -> Schema:
    """Alternatives with what stands beside them put into each."""
    key = keys[0]
    beside = {name: value for name, value in schema.items() if name != key and name not in NOTES}
    ways: list[Any] = []
    for choice in alternatives(schema, key):
        both = plain(together(choice, beside, document, lost), document, lost)
        inner = both.get("anyOf") if isinstance(both, Mapping) and says(both) == {"anyOf"} else None
        ways += inner if inner else [both]
        if len(ways) > _MAX_CHOICES:
            raise UsageError(f"the schema's alternatives make more than {_MAX_CHOICES} together")
    ways = [way for way in ways if way is not False]
    if key == "oneOf" and not disjoint(ways, document):
        lost("oneOf", "its schemas may hold at once")
    if not ways:
        raise UsageError(f"no alternative of `{key}` goes with what stands beside it in the schema")
    return {"anyOf": ways}


# ---------------------------------------------------------------- two schemas together


def together(first: Any, second: Any, document: Any, lost: Lost) -> Any:
    """What both schemas take. Parts deeper inside become `allOf`, united when they are reached."""
    if first is True or first == {} or first == second:
        return second
    if second is True or second == {}:
        return first
    if first is False or second is False:
        return False
    sides = []
    for side in (first, second):
        for _ in range(_MAX_HOPS):
            side = plain(side, document, lost)
            if not (isinstance(side, Mapping) and "$ref" in side):
                break
            side = find(document, side["$ref"])
        else:
            raise UsageError("a `$ref` in the schema is nothing but itself")
        sides.append(side)
    a, b = sides
    if a is True or a is False or b is True or b is False:
        return together(a, b, document, lost)
    for one, other in ((a, b), (b, a)):
        if keys := _choices(one):
            if keys == ["oneOf"] and not disjoint(alternatives(one, "oneOf"), document):
                lost("oneOf", "its schemas may hold at once")
            rest = {key: value for key, value in one.items() if key not in (keys[0], *NOTES)}
            ways = [{"allOf": [choice, other, *([rest] if rest else [])]} for choice in alternatives(one, keys[0])]
            return {"anyOf": ways}
    return _united(a, b, lost)


def _united(a: Schema, b: Schema, lost: Lost) -> Any:
    out: dict[str, Any] = {**b, **a}
    if "type" in a and "type" in b:
        kinds = _common(types_of(a), types_of(b))
        if not kinds:
            return False
        out["type"] = kinds
    for key in _LEAST:
        _pick(out, a, b, key, max)
    for key in _MOST:
        _pick(out, a, b, key, min)
    if "const" in a and "const" in b and not same(a["const"], b["const"]):
        return False
    if isinstance(a.get("enum"), list) and isinstance(b.get("enum"), list):
        out["enum"] = [value for value in a["enum"] if any(same(value, other) for other in b["enum"])]
        if not out["enum"]:
            return False
    if isinstance(a.get("required"), list) and isinstance(b.get("required"), list):
        out["required"] = [*a["required"], *(key for key in b["required"] if key not in a["required"])]
    if "properties" in out or "additionalProperties" in out:
        _unite_properties(out, a, b)
    for key in ("items", "contains"):
        if key in a and key in b:
            out[key] = _both(a[key], b[key])
    _unite_tuples(out, a, b)
    for key in sorted((a.keys() & b.keys()) - _UNITED - NOTES):
        if not same(a[key], b[key]):
            lost(key, "two different ones hold at once")
    return out


_LEAST = ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum")  # of two the larger holds
_MOST = ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum")  # of two the smaller
_UNITED = frozenset(
    (*_LEAST, *_MOST, "type", "const", "enum", "required", "properties", "additionalProperties", "items", "contains",
     "prefixItems")
)  # fmt: skip


def _pick(out: dict[str, Any], a: Schema, b: Schema, key: str, tighter: Callable[[Any, Any], Any]) -> None:
    if key in a and key in b:
        if _is_number(a[key]) and _is_number(b[key]):
            out[key] = tighter(a[key], b[key])
        elif a[key] != b[key]:
            raise UsageError(f"`{key}` in the schema is not a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _both(first: Any, second: Any) -> Any:
    if first is True or first == {} or first == second:
        return second
    return first if second is True or second == {} else {"allOf": [first, second]}


def _unite_properties(out: dict[str, Any], a: Schema, b: Schema) -> None:
    mine, yours = a.get("properties", {}), b.get("properties", {})
    if not isinstance(mine, Mapping) or not isinstance(yours, Mapping):
        raise UsageError("`properties` in the schema has the wrong form")
    more, less = a.get("additionalProperties", True), b.get("additionalProperties", True)
    fields = {}
    for key in (*mine, *(key for key in yours if key not in mine)):
        fields[key] = _both(mine.get(key, more), yours.get(key, less))
    if fields:
        out["properties"] = fields
    if "additionalProperties" in a or "additionalProperties" in b:
        out["additionalProperties"] = False if more is False or less is False else _both(more, less)


def _unite_tuples(out: dict[str, Any], a: Schema, b: Schema) -> None:
    mine, yours = a.get("prefixItems"), b.get("prefixItems")
    if not isinstance(mine, list) and not isinstance(yours, list):
        return
    mine, yours = mine if isinstance(mine, list) else [], yours if isinstance(yours, list) else []
    rest, others = a.get("items", True), b.get("items", True)
    longest = max(len(mine), len(yours))
    padded = zip([*mine, *[rest] * (longest - len(mine))], [*yours, *[others] * (longest - len(yours))], strict=True)
    out["prefixItems"] = [_both(one, other) for one, other in padded]


def types_of(schema: Schema) -> list[str]:
    """The types that a schema names, all where it names none. Raises UsageError."""
    kinds = schema.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not kinds or any(kind not in TYPES for kind in kinds):
        raise UsageError(f"`{kinds!r:.60}` is not a type of a JSON schema", hint=f"types are {', '.join(TYPES)}")
    return [*kinds, "null"] if schema.get("nullable") is True and "null" not in kinds else kinds


def _common(first: list[str], second: list[str]) -> list[str]:
    found = [kind for kind in first if kind in second or (kind == "integer" and "number" in second)]
    if "number" in first and "integer" in second and "integer" not in found:
        found.append("integer")
    return found


# ---------------------------------------------------------------- values


def same(a: Any, b: Any) -> bool:
    """Equal as JSON values: 1 and 1.0 are, 1 and true are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    return bool(type(a) is type(b) or (_is_number(a) and _is_number(b))) and bool(a == b)


def takes(schema: Any, value: Any, document: Any, depth: int = 0) -> bool:
    """Whether a schema takes a value, as far as the keywords that are known here say. Raises UsageError."""
    if depth > _MAX_HOPS:
        raise UsageError(f"the schema is nested deeper than {_MAX_HOPS} levels")
    if schema is True or schema is False:
        return bool(schema)
    if not isinstance(schema, Mapping):
        raise UsageError(f"`{schema!r:.60}` is not a JSON schema", hint="a schema is an object")

    def deeper(inner: Any, of: Any = value) -> bool:
        return takes(inner, of, document, depth + 1)

    if "$ref" in schema and not deeper(find(document, schema["$ref"])):
        return False
    if value is None and schema.get("nullable") is True:
        return True
    if "type" in schema and not any(_is_kind(kind, value) for kind in types_of(schema)):
        return False
    if isinstance(schema.get("enum"), list) and not any(same(value, one) for one in schema["enum"]):
        return False
    if "const" in schema and not same(value, schema["const"]):
        return False
    if "allOf" in schema and not all(map(deeper, alternatives(schema, "allOf"))):
        return False
    if "anyOf" in schema and not any(map(deeper, alternatives(schema, "anyOf"))):
        return False
    if "oneOf" in schema and sum(map(deeper, alternatives(schema, "oneOf"))) != 1:
        return False
    if "not" in schema and deeper(schema["not"]):
        return False
    return _takes_kind(schema, value, deeper)


def _is_kind(kind: str, value: Any) -> bool:
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        return _is_number(value) and value == int(value)
    if kind == "number":
        return _is_number(value)
    return isinstance(value, {"string": str, "object": Mapping, "array": list}[kind])


def _takes_kind(schema: Schema, value: Any, deeper: Callable[[Any, Any], bool]) -> bool:
    if isinstance(value, str):
        return bool(_at_least(schema, "minLength") <= len(value) <= schema.get("maxLength", len(value)))
    if _is_number(value):
        low, low_out, high, high_out = ranges.bounds(schema)
        at = Decimal(repr(value))
        above = low is None or at > low or (at == low and not low_out)
        return above and (high is None or at < high or (at == high and not high_out))
    if isinstance(value, list):
        if not _at_least(schema, "minItems") <= len(value) <= schema.get("maxItems", len(value)):
            return False
        first, items = schema.get("prefixItems", []), schema.get("items", True)
        rest = value[len(first) :] if isinstance(first, list) else value
        return all(map(deeper, first, value)) and all(deeper(items, one) for one in rest)
    if isinstance(value, Mapping):
        fields, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        if any(key not in value for key in schema.get("required", [])):
            return False
        return all(deeper(fields.get(key, more), one) for key, one in value.items())
    return True


def _at_least(schema: Schema, name: str) -> Any:
    return schema.get(name, 0)


def disjoint(choices: list[Any], document: Any) -> bool:
    """Whether no value can satisfy two of these schemas: other types, or other constants of a required property."""
    flat = []
    for choice in choices:
        for _ in range(_MAX_HOPS):
            if not (isinstance(choice, Mapping) and "$ref" in choice):
                break
            choice = find(document, choice["$ref"])
        if not isinstance(choice, Mapping):
            return False
        flat.append(choice)
    if len(flat) > _MAX_CHOICES:
        return False
    return all(_apart(flat[i], flat[j]) for i in range(len(flat)) for j in range(i))


def _apart(a: Schema, b: Schema) -> bool:
    if "type" in a and "type" in b and not _common(types_of(a), types_of(b)):
        return True
    mine, yours = _values(a), _values(b)
    if mine is not None and yours is not None:
        return not any(same(x, y) for x in mine for y in yours)
    fields, others = a.get("properties", {}), b.get("properties", {})
    if not isinstance(fields, Mapping) or not isinstance(others, Mapping):
        return False
    needed = set(map(str, a.get("required", []))) & set(map(str, b.get("required", [])))
    return any(
        isinstance(fields.get(key), Mapping)
        and isinstance(others.get(key), Mapping)
        and _apart(fields[key], others[key])
        for key in needed
        if (_values(fields.get(key)) is not None and _values(others.get(key)) is not None)
        or "type" in (fields.get(key) or {})
    )


def _values(schema: Any) -> list[Any] | None:
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def key_of(schema: Any) -> str:
    """The same text for the same schema."""
    return json.dumps(schema, sort_keys=True)
