"""Numbers between bounds, as grammars. Pure; exact for integers, and never outside the bounds for others.

Numbers with fractions are written as whole steps of a power of ten, and with further digits where those stay inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ...errors import UsageError

_DIGITS = 16  # of integers without an upper bound, as in JSON_RULES
_MAX_DECIMALS = 6
_STEPS = 10  # a range is cut into at least so many steps


def bounds(schema: Mapping[str, Any]) -> tuple[Decimal | None, bool, Decimal | None, bool]:
    """Lower bound, whether it is out itself, upper bound, the same. Raises UsageError for what are no numbers."""
    low, low_out = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, high_out = _bound(schema, "maximum", "exclusiveMaximum", min)
    return low, low_out, high, high_out


def _bound(schema: Mapping[str, Any], name: str, exclusive: str, tighter: Any) -> tuple[Decimal | None, bool]:
    at, out = schema.get(name), schema.get(exclusive)
    if isinstance(out, bool):  # as draft 4 wrote it
        return (None, False) if at is None else (_number(name, at), out)
    if at is None or out is None:
        key, value = (name, at) if out is None else (exclusive, out)
        return (None, False) if value is None else (_number(key, value), out is not None)
    both = _number(name, at), _number(exclusive, out)
    found = tighter(both)
    return found, found == both[1]


def _number(name: str, value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) > 1e15:
        raise UsageError(f"`{name}` in the schema is `{value!r:.40}`, not a number below 10^15")
    return Decimal(repr(value))


def integers(schema: Mapping[str, Any]) -> str | None:
    """Integers that a schema takes; None: any. Raises UsageError where there is none."""
    low, low_out, high, high_out = bounds(schema)
    if low is None and high is None:
        return None
    first, last = _steps(low, low_out, high, high_out, 0)
    if first is not None and last is not None and first > last:
        raise UsageError(f"no integer is between {low} and {high}, as the schema wants")
    return _signed(first, last, "", None)


def numbers(schema: Mapping[str, Any]) -> str | None:
    """Numbers that a schema takes; None: any. Raises UsageError where there is none that can be written."""
    low, low_out, high, high_out = bounds(schema)
    if low is None and high is None:
        return None
    decimals = 0
    while decimals < _MAX_DECIMALS:
        first, last = _steps(low, low_out, high, high_out, decimals)
        coarse = first is not None and last is not None and last - first < _STEPS
        inexact = any(at is not None and at * 10**decimals % 1 for at in (low, high))
        if not coarse and not inexact and not ((low_out or high_out) and decimals == 0):
            break
        decimals += 1
    first, last = _steps(low, low_out, high, high_out, decimals)
    if first is not None and last is not None and first > last:
        raise UsageError(f"no number of {_MAX_DECIMALS} decimals is between {low} and {high}, as the schema wants")
    # More digits lead away from zero: a step whose next step away is in range may have them.
    found = _signed(first, last, "[0-9]{1,9}", decimals)
    first, last = _steps(low, low_out, high, high_out, 0)
    if decimals and (first is None or last is None or first <= last):  # whole numbers without a point
        found = f"{_signed(first, last, '', None)} | {found}"
    return found


def _steps(
    low: Decimal | None, low_out: bool, high: Decimal | None, high_out: bool, decimals: int
) -> tuple[int | None, int | None]:
    """Bounds in whole steps of 10^-decimals, both inside."""
    scale = Decimal(10) ** decimals
    first = None if low is None else math.ceil(low * scale) + (low_out and low * scale == math.ceil(low * scale))
    last = None if high is None else math.floor(high * scale) - (high_out and high * scale == math.floor(high * scale))
    return first, last


def _signed(first: int | None, last: int | None, more: str, decimals: int | None) -> str:
    """Steps between two bounds; None is none. more: digits that may follow; decimals: of a step, None for integers."""
    ways = []
    if last is None or last >= 0:
        ways += _unsigned(max(first or 0, 0), last, more, decimals)
    if first is None or first < 0:
        least, most = (1 if last is None or last >= 0 else -last), (None if first is None else -first)
        if most is None or least <= most:
            ways += [f'"-" ({" | ".join(_unsigned(least, most, more, decimals))})']
    return " | ".join(ways)


def _unsigned(first: int, last: int | None, more: str, decimals: int | None) -> list[str]:
    width = (decimals or 0) + 1
    inner = None if last is None else last - 1  # the last step may have no further digits
    if decimals is None:
        return [_pointed(one, None, "") for one in _spans(first, last, width)]
    ways = (
        [_pointed(one, decimals, more) for one in _spans(first, inner, width)]
        if inner is None or inner >= first
        else []
    )
    return ways if last is None else [*ways, *(_pointed(one, decimals, "") for one in _spans(last, last, width))]


Span = list[str]
"""Classes of digits, one for each place; the last may be any number of further ones, `[0-9]{n,m}`."""


def _spans(first: int, last: int | None, width: int) -> list[Span]:
    """Numbers from first to last as sequences of digits, at least `width` of them."""
    if last is None:
        n = max(len(str(first)), width)
        spans = _spans(first, 10**n - 1, width)
        if n < _DIGITS + width:
            spans.append(["[1-9]", f"[0-9]{{{n},{_DIGITS + width}}}"])
        return spans
    spans = []
    while first <= last:
        n = max(len(str(first)), width)
        until = min(last, 10**n - 1)
        spans += _alike(str(first).zfill(n), str(until).zfill(n))
        first = until + 1
    return spans


def _alike(low: str, high: str) -> list[Span]:
    """Numbers of as many digits between two."""
    if not low:
        return [[]]
    if low[0] == high[0]:
        return [[_class(low[0], low[0]), *rest] for rest in _alike(low[1:], high[1:])]
    n = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return [[_class(low[0], high[0]), *["[0-9]"] * n]]
    first, last = int(low[0]), int(high[0])
    if set(low[1:]) <= {"0"}:
        below: list[Span] = []
    else:
        below, first = [[_class(low[0], low[0]), *rest] for rest in _alike(low[1:], "9" * n)], first + 1
    above: list[Span] = []
    if not set(high[1:]) <= {"9"}:
        above, last = [[_class(high[0], high[0]), *rest] for rest in _alike("0" * n, high[1:])], last - 1
    middle = [[_class(str(first), str(last)), *["[0-9]"] * n]] if first <= last else []
    return [*below, *middle, *above]


def _class(low: str, high: str) -> str:
    return f'"{low}"' if low == high else f"[{low}-{high}]"


def _pointed(span: Span, decimals: int | None, more: str) -> str:
    """A span with its decimal point, and with more digits after it if they may come."""
    if not decimals:
        tail = f' ("." {more})?' if decimals == 0 and more else ""
        return " ".join(span) + tail
    if span[-1].endswith("}"):  # leading digits without end, then the decimals
        least, most = span[-1][6:-1].split(",")
        span = [span[0], f"[0-9]{{{int(least) - decimals},{int(most) - decimals}}}", *["[0-9]"] * decimals]
    tail = f" {more.replace('{1,', '{0,')}" if more else ""
    return f'{" ".join(span[:-decimals])} "." {" ".join(span[-decimals:])}{tail}'
