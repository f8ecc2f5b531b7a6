"""How many bits each expert gets: what was asked for in ggml's types, as the widths that ONNX Runtime multiplies by.

Its kernels take 2, 4 and 8 bits, the same for all matrices of an expert. Whatever else is asked for becomes the next
wider of these, never less than was asked for; what that changed is told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import UsageError
from ..allocate import make_table, solve
from ..allocation import Allocation
from ..calibration import Calibration
from ..ggml import PLAIN, TARGETS, bits
from ..source import Source
from .quantize import BITS

_DIGIT = re.compile(r"(?:IQ|TQ|MXFP|Q)(\d)")
DEFAULT_BITS = 4


@dataclass
class Widths:
    """layers: block -> one of BITS an expert. notes: sentences about what came otherwise than asked."""

    layers: dict[int, list[int]]
    notes: list[str] = field(default_factory=list)


def asked_bits(name: str) -> int:
    """Whole bits of a type's codes as it is called: 4 of "Q4_K", 16 of "F16", 3 of "3". Raises UsageError."""
    if name.isascii() and name.isdigit():
        if not 1 <= int(name) <= 16:
            raise UsageError(f"{name} bits a weight make no sense", hint="give 2, 4 or 8")
        return int(name)
    upper = name.upper()
    if upper not in TARGETS:
        raise UsageError(f"`{name}` is not a type for weights", hint=f"2, 4 or 8, or one of {', '.join(TARGETS)}")
    match = _DIGIT.match(upper)
    return int(match[1]) if match else round(bits(upper))


def native_bits(asked: int) -> int:
    """The width that holds as many bits: 3 becomes 4, 5 and 6 become 8, and so does everything wider."""
    return next((width for width in BITS if width >= asked), BITS[-1])


def widths_of(source: Source, type_name: str | None, allocation: Allocation | None) -> Widths:
    """A width for each expert: of the allocation, of the one type, or the source's own."""
    found = Widths({})
    changed: Counter[tuple[str, int]] = Counter()
    n_uneven = 0
    for layer in sorted({key[0] for key in source.experts}):
        roles = [key[2] for key in source.experts if key[0] == layer]
        n_expert = len(source.experts[layer, "exps", roles[0]])
        found.layers[layer] = []
        for expert in range(n_expert):
            names = [_name(source, layer, role, expert, type_name, allocation) for role in roles]
            wanted = [native_bits(asked_bits(name)) for name in names]
            found.layers[layer].append(max(wanted))
            n_uneven += len(set(wanted)) > 1
            for name, width in zip(names, wanted, strict=True):
                if asked_bits(name) != width:
                    changed[name, width] += 1
    for (name, width), n in sorted(changed.items()):
        why = "are kept in" if width >= asked_bits(name) else "get no more than"
        found.notes.append(f"{n} matrices of {_called(name)} {why} {width} bits: ONNX Runtime has 2, 4 and 8")
    if n_uneven:
        found.notes.append(f"{n_uneven} experts have one width for all their matrices, the widest of those asked for")
    return found


def _name(
    source: Source, layer: int, role: str, expert: int, type_name: str | None, allocation: Allocation | None
) -> str:
    if allocation is not None:
        return allocation.of(layer, role, expert)
    if type_name is not None:
        return type_name
    own = source.experts[layer, "exps", role][expert].type
    return str(DEFAULT_BITS) if own in PLAIN else own


def _called(name: str) -> str:
    return f"{name} bits" if name.isdigit() else name


def allocate_widths(source: Source, calibration: Calibration, *, bits_a_weight: float) -> Allocation:
    """One measured type a width, and one width an expert, for a mean of so many bits of codes. Raises UsageError."""
    types = _representatives(calibration.types)
    table = make_table(calibration, types)
    widths = np.array([native_bits(asked_bits(name)) for name in types], np.float64)
    groups: dict[tuple[int, int], list[int]] = {}
    for row, items in enumerate(table.items):
        groups.setdefault((items[0][0], items[0][2]), []).append(row)
    joined, sizes, damages = [], [], []
    n_weight = 0
    for rows in groups.values():
        joined.append(tuple(item for row in rows for item in table.items[row]))
        size = np.zeros(len(types))
        for row in rows:
            layer, role, _ = table.items[row][0]
            n_row, n_col = calibration.layers[layer].shapes[role]
            n_weight += n_row * n_col
            size += np.where(np.isfinite(table.n_bytes[row]), n_row * n_col * widths / 8, np.inf)
        sizes.append(size)
        damages.append(table.damage[rows].sum(0))
    merged = type(table)(tuple(joined), table.types, np.array(sizes), np.array(damages))
    chosen, _ = solve(merged, n_weight * bits_a_weight / 8)
    out: dict[int, dict[str, list[str]]] = {}
    for items, index in zip(joined, chosen, strict=True):
        for layer, role, expert in items:
            names = out.setdefault(layer, {}).setdefault(role, [""] * len(source.experts[layer, "exps", role]))
            names[expert] = str(int(widths[index]))
    return Allocation(
        {layer: {role: tuple(names) for role, names in roles.items()} for layer, roles in out.items()},
        facts={"method": "onnx", "bits": bits_a_weight, "types": list(types)},
    )


def _representatives(types: Sequence[str]) -> tuple[str, ...]:
    """Of the measured types the plainest of each width: its error stands for that of a block with one scale."""
    found: dict[int, str] = {}
    for width in BITS:
        same = [name for name in types if asked_bits(name) == width]
        plain = [name for name in same if name in ("Q8_0", "Q4_0", "Q2_K")]
        if same:
            found[width] = (plain or same)[0]
    if not found:
        raise UsageError("the calibration measured no type of 2, 4 or 8 bits", hint="calibrate with other `--types`")
    return tuple(found.values())
