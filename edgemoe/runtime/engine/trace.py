"""Traces: what the engine recorded of its routing, reads and stalls, as data. The format is in docs/trace.md."""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import FormatError, StorageError

if TYPE_CHECKING:
    from ..model import Model

MAGIC = b"EMOETRC1"
_KINDS = {
    1: struct.Struct("<IQQB"),  # batch: n_token, begin, end, reads ahead
    2: struct.Struct("<HIQH"),  # visit: layer, n_token, time, n_use; its uses follow
    3: struct.Struct("<IBBIQQ"),  # read: expert, matrices, ahead, bytes, asked, ended
    4: struct.Struct("<HBQQ"),  # stall: layer, matrix, begin, end
    5: struct.Struct("<HBQQ"),  # product: layer, matrix, begin, end
}
_MAX_EXPERTS = 1 << 20
_USE = struct.Struct("<HIfB")  # expert, n_row, weight, state
STATES = ("miss", "hit", "late", "streamed")
"""What a use found, by number."""


def header(model: Model, n_slot: int) -> str:
    """The JSON at a trace's beginning: what replay needs to know of the model."""
    return json.dumps(
        {
            "model": model.info.name,
            "n_slot": n_slot,
            "n_expert_used": model.info.n_expert_used,
            "n_expert": [layer.n_expert for layer in model.layers],
            "blocks": [layer.layer for layer in model.layers],
            "expert_bytes": [layer.expert_bytes for layer in model.layers],
        }
    )


@dataclass
class Trace:
    """A trace in memory; times in ns.

    visit_*: layer, tokens and number of uses of each visit, and its time. use_*: of all visits in turn: expert (number
    in its layer), rows routed to it, router weight, state. batches: (n_token, begin, end, reads ahead, first visit).
    reads: (expert over all layers, matrices, ahead, bytes, asked, ended).
    stalls, products: (layer, matrix, begin, end).
    """

    about: dict[str, Any]
    visit_layer: array[int] = field(default_factory=lambda: array("I"))
    visit_n_token: array[int] = field(default_factory=lambda: array("I"))
    visit_n_use: array[int] = field(default_factory=lambda: array("I"))
    visit_ns: array[int] = field(default_factory=lambda: array("Q"))
    use_expert: array[int] = field(default_factory=lambda: array("I"))
    use_n_row: array[int] = field(default_factory=lambda: array("I"))
    use_weight: array[float] = field(default_factory=lambda: array("f"))
    use_state: array[int] = field(default_factory=lambda: array("B"))
    batches: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    reads: list[tuple[int, ...]] = field(default_factory=list)
    stalls: list[tuple[int, ...]] = field(default_factory=list)
    products: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def n_expert(self) -> list[int]:
        """Experts of each layer."""
        return list(self.about["n_expert"])

    def decode_visits(self) -> Trace:
        """The visits of single tokens only, in order."""
        kept = Trace(self.about)
        first = 0
        for layer, n_token, n_use, ns in zip(
            self.visit_layer, self.visit_n_token, self.visit_n_use, self.visit_ns, strict=True
        ):
            if n_token == 1:
                kept.visit_layer.append(layer)
                kept.visit_n_token.append(n_token)
                kept.visit_n_use.append(n_use)
                kept.visit_ns.append(ns)
                for name in ("use_expert", "use_n_row", "use_weight", "use_state"):
                    getattr(kept, name).extend(getattr(self, name)[first : first + n_use])
            first += n_use
        return kept


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace file. A record that was cut off at the end is left out. Raises StorageError, FormatError."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read `{path}`: {error.strerror}", hint="give a file that `--trace` wrote") from None
    trace, position = _about(raw, path)
    visits_done = 0
    n_expert = trace.n_expert
    for kind, values, uses in _records(raw, position, path):
        if kind == 2:
            layer, n_token, ns, n_use = values
            if layer >= len(n_expert):
                raise _damaged(path)
            trace.visit_layer.append(layer)
            trace.visit_n_token.append(n_token)
            trace.visit_n_use.append(n_use)
            trace.visit_ns.append(ns)
            for expert, n_row, weight, state in uses:
                if expert >= n_expert[layer] or state >= len(STATES) or not isfinite(weight):
                    raise _damaged(path)
                trace.use_expert.append(expert)
                trace.use_n_row.append(n_row)
                trace.use_weight.append(weight)
                trace.use_state.append(state)
        elif kind == 1:
            trace.batches.append((*values, visits_done))
            visits_done = len(trace.visit_layer)
        else:
            {3: trace.reads, 4: trace.stalls, 5: trace.products}[kind].append(values)
    return trace


def _about(raw: bytes, path: str | os.PathLike[str]) -> tuple[Trace, int]:
    if raw[:8] != MAGIC or len(raw) < 12:
        raise FormatError(f"`{path}` is not a trace", hint="give a file that `--trace` wrote")
    (length,) = struct.unpack_from("<I", raw, 8)
    try:
        about = json.loads(raw[12 : 12 + length])
        sizes, n_used = about["expert_bytes"], about["n_expert_used"]
        good = _counts(about["n_expert"]) and _counts(sizes) and _counts([n_used]) and n_used < 1 << 16
        good = good and isinstance(about["model"], str)
        # Policies keep a row for each expert, numbered in 32 bits: no model has so many.
        if not good or len(sizes) != len(about["n_expert"]) or sum(about["n_expert"]) > _MAX_EXPERTS:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(path) from None
    return Trace(about), 12 + length


def _counts(values: Any) -> bool:
    """Whether this is a list of whole numbers above 0."""
    return isinstance(values, list) and bool(values) and all(type(n) is int and 0 < n < 1 << 48 for n in values)


def _records(
    raw: bytes, position: int, path: str | os.PathLike[str]
) -> Iterator[tuple[int, tuple[Any, ...], list[tuple[Any, ...]]]]:
    while position < len(raw):
        kind = raw[position]
        form = _KINDS.get(kind)
        if form is None:
            raise _damaged(path)
        position += 1
        if position + form.size > len(raw):
            return
        values = form.unpack_from(raw, position)
        position += form.size
        uses: list[tuple[Any, ...]] = []
        if kind == 2:
            size = values[3] * _USE.size
            if position + size > len(raw):
                return
            uses = list(_USE.iter_unpack(raw[position : position + size]))
            position += size
        yield kind, values, uses


def _damaged(path: str | os.PathLike[str]) -> FormatError:
    return FormatError(f"the trace `{path}` is damaged", hint="record it again with `--trace`")
