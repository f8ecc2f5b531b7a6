"""Rules of llama.cpp's grammars (GBNF) as text, and pieces of them that stay small: repeats, lists of texts. Pure.

llama.cpp unrolls `x{0,1000}` into a thousand rules. Characters are counted here with about twenty rules instead, powers
of two; what is in lists is unrolled, since a parser that counts in powers follows several counts at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import UsageError

JSON_RULES = {
    # Blanks where people who format JSON put them, and no more: small models, once in blanks, find no way out.
    "ws": '| " " | "\\n" " "{0,8}',
    "sp": '" "?',
    # One character: halves of a pair only together.
    "char": '[^"\\\\\\x7F\\x00-\\x1F] | "\\\\" (["\\\\/bfnrt] | "u" code)',
    "code": '[0-9a-cA-CeEfF] [0-9a-fA-F]{3} | [dD] ([0-7] [0-9a-fA-F]{2} | [89abAB] [0-9a-fA-F]{2} "\\\\u" low)',
    "low": "[dD] [c-fC-F] [0-9a-fA-F]{2}",
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

PLAIN = '"\\\\\\x7F\\x00-\\x1F'
"""Inside a character class: what a JSON string does not hold as it is."""

MAX_COUNT = 2**20 - 1  # no context holds more; a higher upper bound becomes this one
_MAX_RULES = 4000
_MAX_UNROLLED = 4000  # repeats in lists of one grammar
_INLINE = 8  # a repeat so short is left to llama.cpp
_MAX_TRIE = 2000  # characters of names that are told apart one by one


def literal(text: str) -> str:
    """A GBNF literal of a text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return '"' + escaped.replace("\t", "\\t").replace("\0", "\\x00") + '"'


def constant(value: Any) -> str:
    """JSON text of a value."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can say it
        text = json.dumps(value)
    return text


def in_class(char: str) -> str:
    """A character as it stands in a class."""
    if char.isascii() and char.isalnum():
        return char
    code = ord(char)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def rules_text(rules: Mapping[str, str]) -> Iterable[str]:
    """Lines of GBNF."""
    return (f"{name} ::= {body}" for name, body in rules.items())


class Rules:
    """Rules with names of their own. Raises UsageError where they become too many."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._made: dict[str, str] = {}
        self._known: dict[tuple[str, str], str] = {}
        self._counts: dict[tuple[str, int], str] = {}
        self._unrolled = 0

    def __getitem__(self, name: str) -> str:
        return self._made[name]

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def lines(self) -> Iterable[str]:
        return rules_text(self._made)

    def replace(self, name: str, body: str) -> None:
        self._made[name] = body or '""'

    def add(self, stem: str, body: str) -> str:
        """The name of a new rule, made after `stem`."""
        if len(self._made) >= _MAX_RULES:
            raise UsageError(f"the schema makes more than {_MAX_RULES:,} grammar rules", hint="use a smaller schema")
        clean = "".join(char if char.isascii() and char.isalnum() else "-" for char in stem[:60])
        name = f"{self._prefix}-{clean}"
        name = name if name not in self._made else f"{name}-{len(self._made)}"
        self._made[name] = body or '""'
        return name

    def shared(self, stem: str, body: str) -> str:
        """`add`, or the name of the rule that has this body already."""
        key = (stem, body)
        if key not in self._known:
            self._known[key] = self.add(stem, body)
        return self._known[key]

    # ---------------------------------------------------------------- repeats

    def listed(self, item: str, least: int, most: int | None) -> str:
        """`item` from `least` to `most` times, for items of any kind."""
        if most is not None and most - least > _INLINE:
            self._unrolled += most - least
            if self._unrolled > _MAX_UNROLLED:
                raise UsageError(
                    f"the schema's lists may have more than {_MAX_UNROLLED:,} items together",
                    hint="use smaller `maxItems`, or none",
                )
        if most is None:
            return f"{self._times(item, least)} ({item})*".strip()
        up_to = "" if most == least else f"({item}){{0,{most - least}}}"
        return f"{self._times(item, least)} {up_to}".strip()

    def counted(self, item: str, least: int, most: int | None) -> str:
        """`item` from `least` to `most` times, for single characters: a few rules whatever the bounds."""
        if least > MAX_COUNT:
            raise UsageError(f"nothing can be repeated {least:,} times in an answer")
        if most is None:
            return f"{self._times(item, least)} ({item})*".strip()
        most = min(most, MAX_COUNT)
        return f"{self._times(item, least)} {self._up_to(item, most - least)}".strip()

    def _times(self, item: str, n: int) -> str:
        if n > MAX_COUNT:
            raise UsageError(f"nothing can be repeated {n:,} times in an answer")
        if n == 0:
            return ""
        if n <= _INLINE:
            return f"({item}){{{n}}}"
        return " ".join(self._power(item, bit) for bit in range(n.bit_length()) if n >> bit & 1)

    def _power(self, item: str, bit: int) -> str:
        """`item` 2^bit times."""
        if bit == 0:
            return f"({item})"
        half = self._power(item, bit - 1)
        return self.shared("twice", f"{half} {half}")

    def _up_to(self, item: str, n: int) -> str:
        """`item` at most n times: either as often as the highest power of two and some more, or less often."""
        if n <= 1:
            return f"({item})?" if n else ""
        if (item, n) not in self._counts:
            high = 1 << (n.bit_length() - 1)
            more, less = self._up_to(item, n - high), self._up_to(item, high - 1)
            body = f"{self._power(item, high.bit_length() - 1)} {more} | {less}"
            self._counts[item, n] = self.shared("upto", body)
        return self._counts[item, n]

    # ---------------------------------------------------------------- lists of texts

    def one_of(self, texts: Sequence[str]) -> str:
        """One of some texts; what they begin with alike is written once."""
        return self._branches(sorted(set(texts)), 0)

    def _branches(self, texts: Sequence[str], at: int) -> str:
        """What follows character `at` in sorted texts that are alike so far."""
        groups: dict[str, list[str]] = {}
        for text in texts:
            groups.setdefault(text[at : at + 1], []).append(text)
        ways = []
        for char, group in groups.items():
            if not char:
                ways.append('""')
                continue
            shared = _alike(group, at)
            if shared == min(map(len, group)) == max(map(len, group)):
                ways.append(literal(group[0][at:]))
            else:
                rest = self._branches(group, shared)
                ways.append(f"{literal(group[0][at:shared])} {self.add('of', rest)}")
        return " | ".join(ways)

    def other_key(self, names: Iterable[str]) -> str:
        """A JSON string that is none of some names, however it is spelled: it is written without escapes."""
        names = sorted({name for name in names if not any(char in '"\\\x7f' or char < " " for char in name)})
        if not names:
            return "string"
        plain = f"[^{PLAIN}]"
        if sum(map(len, names)) > _MAX_TRIE:  # narrower: another first letter
            firsts = "".join(in_class(char) for char in sorted({name[0] for name in names if name}))
            inside = f"[^{PLAIN}{firsts}] {plain}*"
            return f'"\\"" {inside if "" in names else f"({inside})?"} "\\""'
        return f'"\\"" {self.add("key", self._unlike(names, 0))} "\\""'

    def _unlike(self, names: Sequence[str], at: int) -> str:
        plain = f"[^{PLAIN}]"
        nexts: dict[str, list[str]] = {}
        for name in names:
            if len(name) > at:
                nexts.setdefault(name[at], []).append(name)
        if not nexts:
            return f"{plain} {plain}*"
        ways = [f"[{in_class(char)}] {self.shared('key', self._unlike(some, at + 1))}" for char, some in nexts.items()]
        ways.append(f"[^{PLAIN}{''.join(map(in_class, nexts))}] {plain}*")
        if not any(len(name) == at for name in names):
            ways.append('""')
        return " | ".join(ways)


def _alike(texts: Sequence[str], at: int) -> int:
    """Up to which character sorted texts are alike."""
    first, last = texts[0], texts[-1]
    while at < min(len(first), len(last)) and first[at] == last[at]:
        at += 1
    return at
