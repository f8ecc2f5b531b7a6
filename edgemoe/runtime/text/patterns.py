"""Regular expressions of JSON schemas (`pattern`) as grammars of the inside of a JSON string. Pure.

What a grammar cannot say (looking ahead, references to groups, words' ends) raises `NotRegular`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from .gbnf import MAX_COUNT, PLAIN, Rules, in_class

if sys.version_info >= (3, 11):
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_parse as parser

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_DIGITS = [(0x30, 0x39)]
_WORD = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_BLANK = [(0x09, 0x0D), (0x20, 0x20)]
_END = 0x10FFFF
_NOTHING = '""'
_WIDE = 0x40  # a class of more characters need not have every control character
_MAX_NODES = 2000
_MAX_DEPTH = 40

Spans = list[tuple[int, int]]


class NotRegular(Exception):
    """A pattern that a grammar cannot hold. The text says what of it."""


def inside(pattern: str, rules: Rules) -> str:
    """The grammar of a string's content that a pattern is found in. Raises NotRegular, UsageError."""
    if len(pattern) > _MAX_NODES:
        raise NotRegular(f"a pattern of {len(pattern):,} characters")
    # ECMAScript's names of groups; Python's have a P.
    source = re.sub(r"\(\?<(?![=!])", "(?P<", pattern).replace("\\/", "/")
    try:
        parsed: Any = parser.parse(source)
    except (re.error, RecursionError, OverflowError) as error:
        raise NotRegular(str(error) or "nested too deep") from None
    if parsed.state.flags & ~re.UNICODE.value:
        raise NotRegular("flags")
    writer = _Writer(rules)
    return writer.unanchored(list(parsed))


class _Writer:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._n_node = 0

    def unanchored(self, nodes: list[Any]) -> str:
        """A whole pattern: anything may be before and behind what is not anchored."""
        if len(nodes) == 1 and str(nodes[0][0]) == "BRANCH":
            return " | ".join(f"({self.unanchored(list(way))})" for way in nodes[0][1][1])
        if len(nodes) == 1 and str(nodes[0][0]) == "SUBPATTERN" and not nodes[0][1][1] and not nodes[0][1][2]:
            return self.unanchored(list(nodes[0][1][3]))
        begin = bool(nodes) and _is_at(nodes[0], "AT_BEGINNING", "AT_BEGINNING_STRING")
        end = bool(nodes) and _is_at(nodes[-1], "AT_END", "AT_END_STRING")
        body = self._sequence(nodes[begin : len(nodes) - end], 0)
        return " ".join(part for part in ("" if begin else "char*", body, "" if end else "char*") if part)

    def _sequence(self, nodes: Iterable[Any], depth: int) -> str:
        return " ".join(filter(None, (self._node(str(op), value, depth) for op, value in nodes)))

    def _node(self, op: str, value: Any, depth: int) -> str:
        self._n_node += 1
        if self._n_node > _MAX_NODES or depth > _MAX_DEPTH:
            raise NotRegular("too large a pattern")
        if op == "LITERAL":
            return _one([(value, value)])
        if op == "NOT_LITERAL":
            return _one(_without([(value, value)]))
        if op == "ANY":
            return _one(_without([(0x0A, 0x0A), (0x0D, 0x0D)]))
        if op == "IN":
            return _one(_spans(value))
        if op == "BRANCH":
            return "(" + " | ".join(self._sequence(way, depth + 1) or _NOTHING for way in value[1]) + ")"
        if op == "SUBPATTERN":
            if value[1] or value[2]:
                raise NotRegular("flags")
            return f"({self._sequence(value[3], depth + 1) or _NOTHING})"
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeat(value, depth)
        raise NotRegular(op.lower().replace("_", " "))

    def _repeat(self, value: Any, depth: int) -> str:
        least, most, inner = value
        limit = None if most == parser.MAXREPEAT else int(most)
        item = self._sequence(inner, depth + 1)
        if not item or limit == 0:
            return ""
        if (least, limit) in ((0, 1), (0, None), (1, None)):
            return f"({item}){'?' if limit == 1 else '+' if least else '*'}"
        single = len(inner) == 1 and str(inner[0][0]) in ("LITERAL", "NOT_LITERAL", "ANY", "IN")
        if int(least) > MAX_COUNT:
            raise NotRegular(f"{least} repeats")
        return (self._rules.counted if single else self._rules.listed)(f"{item}", int(least), limit)


def _is_at(node: Any, *names: str) -> bool:
    return str(node[0]) == "AT" and str(node[1]) in names


def _spans(items: Iterable[Any]) -> Spans:
    found: Spans = []
    negated = False
    for op, value in items:
        kind = str(op)
        if kind == "NEGATE":
            negated = True
        elif kind == "LITERAL":
            found.append((value, value))
        elif kind == "RANGE":
            found.append((value[0], value[1]))
        elif kind == "CATEGORY":
            found += _category(str(value))
        else:
            raise NotRegular(kind.lower())
    return _without(found) if negated else found


def _category(name: str) -> Spans:
    known = {"DIGIT": _DIGITS, "WORD": _WORD, "SPACE": _BLANK}[name.removeprefix("CATEGORY_").removeprefix("NOT_")]
    return _without(known) if "NOT_" in name else known


def _without(spans: Spans) -> Spans:
    """All characters but these."""
    found, at = [], 0
    for low, high in sorted(spans):
        if low > at:
            found.append((at, low - 1))
        at = max(at, high + 1)
    return [*found, (at, _END)] if at <= _END else found


def _one(spans: Spans) -> str:
    """One character of these, as JSON writes it in a string."""
    plain: list[str] = []
    ways: list[str] = []
    for low, high in spans:
        wide = high - low > _WIDE
        for code in range(max(low, 0), min(high, 0x7F) + 1):
            char = chr(code)
            if char in _ESCAPES or (not wide and (code < 0x20 or code == 0x7F)):
                spelled = _ESCAPES.get(char, f"\\u{code:04X}").replace("\\", "\\\\").replace('"', '\\"')
                ways.append(f'"{spelled}"')
        plain += _plain(low, high)
    if plain:
        ways.insert(0, f"[{''.join(dict.fromkeys(plain))}]")
    if not ways:
        raise NotRegular("a class of no characters")
    return ways[0] if len(ways) == 1 else f"({' | '.join(dict.fromkeys(ways))})"


def _plain(low: int, high: int) -> list[str]:
    """The part of a range that a JSON string holds as it is, as ranges of a class; half surrogates are left out."""
    found = []
    for first, last in ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, _END)):
        a, b = max(low, first), min(high, last)
        if a <= b:
            found.append(in_class(chr(a)) if a == b else f"{in_class(chr(a))}-{in_class(chr(b))}")
    return found


__all__ = ["PLAIN", "NotRegular", "inside"]
