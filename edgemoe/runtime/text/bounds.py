"""What a grammar will take of memory and time, seen before llama.cpp is given it. Pure.

llama.cpp unrolls repeats, and follows all ways in which a text may go on at once. A grammar that would explode is
refused here in words. One that grows only while an answer is written is stopped then (`Pace`).
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator

from ...errors import UsageError
from ...units import KIB, MIB, format_size

MAX_BYTES = 8 * MIB  # of the unrolled rules of one grammar
_MAX_TEXT = 256 * KIB  # as in native/src/llama/sampler.cpp
_MAX_WAYS = 1000
_MAX_TOKEN_S = 2  # a large vocabulary against a grammar of any use takes a tenth
_RULE_BYTES, _ELEMENT_BYTES = 160, 24  # measured: 180 for an optional repeat
_MAX_REPEAT = 100_000
_MAX_DEPTH = 150

_TOKEN = re.compile(
    r'\s+|#[^\n]*|(?P<define>[a-zA-Z0-9_-]+\s*::=)|(?P<name>[a-zA-Z0-9_-]+)|(?P<text>"(?:\\.|[^"\\])*")'
    r"|(?P<one>\[(?:\\.|[^\]\\])*\]|!?<[^>\n]*>|\.)|(?P<repeat>\{\s*\d*\s*,?\s*\d*\s*\})|(?P<mark>[|()*+?])",
    re.DOTALL,
)


class _Item:
    """A thing in a sequence. refers: to a rule; ways: of a group; source: a text or a class of characters.

    least, most: repeats, most None without end.
    """

    def __init__(self, size: int, refers: str = "", ways: list[list[_Item]] | None = None, source: str = "") -> None:
        self.size, self.refers, self.ways, self.source = size, refers, ways, source
        self.least = 1
        self.most: int | None = 1


_Ways = list[list[_Item]]


@functools.lru_cache(4)  # what is refused is not kept
def check(grammar: str) -> None:
    """Raise UsageError for a grammar that would take too much. One that is malformed is left to llama.cpp."""
    if len(grammar) > _MAX_TEXT:
        raise UsageError(f"a grammar of {format_size(len(grammar))} is too large", hint="use a smaller schema")
    try:
        rules = _parse(grammar)
    except _Malformed:
        return
    taken = sum(_bytes(ways) for ways in rules.values())
    if taken > MAX_BYTES:
        raise UsageError(
            f"the grammar's repeats unroll to {format_size(taken)}, more than {format_size(MAX_BYTES)}",
            hint="use smaller bounds of lengths, or none",
        )
    ahead = _Ahead(rules)
    worst = max(rules, key=ahead.of, default="")
    if worst and ahead.of(worst) > _MAX_WAYS:
        raise UsageError(
            f"the grammar's rule `{worst:.40}` can begin in more than {_MAX_WAYS:,} ways at once",
            hint="use fewer alternatives",
        )


class Pace:
    """Watches a grammar while an answer is written: alternatives that stay alike for long double with every step.

    llama.cpp compares all of them with each other, so what grows shows in the processor's time for one token.
    """

    def __init__(self, grammar: str) -> None:
        self._watched = bool(grammar)
        self._begun = 0.0

    def begin(self) -> None:
        """Before a token is picked."""
        if self._watched:
            self._begun = time.thread_time()

    def end(self) -> None:
        """After it. Raises UsageError."""
        if self._watched and time.thread_time() - self._begun > _MAX_TOKEN_S:
            raise UsageError(
                f"the grammar grew while the answer was written: one token took {_MAX_TOKEN_S} s to check",
                hint="its alternatives stay alike for too long: use fewer, or ones that differ early",
            )


class _Malformed(Exception):
    pass


def _tokens(grammar: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(grammar):
        found = _TOKEN.match(grammar, at)
        if not found:
            raise _Malformed
        at = found.end()
        if found.lastgroup:
            yield found.lastgroup, found[0]


def _parse(grammar: str) -> dict[str, _Ways]:
    rules: dict[str, _Ways] = {}
    open_groups: list[_Ways] = []
    ways: _Ways | None = None
    for kind, text in _tokens(grammar):
        if kind == "define":
            if open_groups:
                raise _Malformed
            ways = rules[text.partition("::=")[0].strip()] = [[]]
            continue
        if ways is None:
            raise _Malformed
        if kind == "name":
            ways[-1].append(_Item(1, refers=text))
        elif kind == "text":
            n_char = len(re.sub(r"\\(?:x..|u....|U.{8}|.)", "x", text, flags=re.DOTALL)) - 2
            ways[-1].append(_Item(n_char, source=text))
        elif kind == "one":
            ways[-1].append(_Item(max(1, len(text) // 3), source=text))
        elif text == "|":
            ways.append([])
        elif text == "(":
            if len(open_groups) > _MAX_DEPTH:
                raise UsageError(f"a grammar with more than {_MAX_DEPTH} nested groups")
            open_groups.append(ways)
            ways = [[]]
        elif text == ")":
            if not open_groups:
                raise _Malformed
            group, ways = ways, open_groups.pop()
            ways[-1].append(_Item(1, ways=group))
        else:
            _repeat(ways[-1], text)
    return rules


def _repeat(sequence: list[_Item], text: str) -> None:
    if not sequence:
        raise _Malformed
    known: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if text in known:
        least, most = known[text]
    else:
        low, comma, high = text.strip("{} ").partition(",")
        least = int(low or 0)
        most = (int(high) if high.strip() else None) if comma else least
    if max(least, most or 0) > _MAX_REPEAT:
        raise UsageError(f"a grammar that repeats something {max(least, most or 0):,} times is too large")
    sequence[-1].least, sequence[-1].most = least, most


def _bytes(ways: _Ways) -> int:
    """Memory of a rule, its groups included."""
    total = _RULE_BYTES
    for way in ways:
        for item in way:
            if item.ways is not None:
                total += _bytes(item.ways)
            n_more = (item.most if item.most is not None else item.least + 1) - item.least
            total += _ELEMENT_BYTES * item.size * max(1, item.least)
            if (item.least, item.most) != (1, 1):
                total += n_more * (_RULE_BYTES + _ELEMENT_BYTES * item.size)
    return total


class _Ahead:
    """In how many ways a rule can begin: the stacks that llama.cpp keeps at once."""

    def __init__(self, rules: dict[str, _Ways]) -> None:
        self._rules = rules
        self._known: dict[str, tuple[int, bool]] = {}

    def of(self, name: str) -> int:
        return self._rule(name, 0)[0]

    def _rule(self, name: str, depth: int) -> tuple[int, bool]:
        """Ways, and whether it may be empty."""
        if name not in self._known:
            if depth > _MAX_DEPTH:
                raise UsageError(f"a grammar whose rules begin with each other {_MAX_DEPTH} deep")
            self._known[name] = (0, False)  # left recursion, which llama.cpp refuses
            self._known[name] = self._alternatives(self._rules.get(name, [[]]), depth + 1)
        return self._known[name]

    def _alternatives(self, ways: _Ways, depth: int) -> tuple[int, bool]:
        total, empty = 0, False
        for way in ways:
            n, nothing = self._sequence(way, depth)
            total, empty = min(total + n, 10**9), empty or nothing
        return total, empty

    def _sequence(self, way: list[_Item], depth: int) -> tuple[int, bool]:
        total = 0
        for item in way:
            n, empty = (1, item.size == 0)
            if item.refers:
                n, empty = self._rule(item.refers, depth)
            elif item.ways is not None:
                n, empty = self._alternatives(item.ways, depth)
            # Repeats of what may be empty are skipped one by one.
            times = max(1, item.least, item.most or 0) if empty else 1
            total = min(total + n * times, 10**9)
            if not empty and item.least > 0:
                return total, False
        return total, True
