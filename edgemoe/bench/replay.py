"""What a recorded trace says: hit rates of every policy at every cache size, how local a model routes, a timeline.

The policies are the shipped ones, run by the library. Pure but for that: a trace in, plain data out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .. import _abi, _native
from ..runtime.engine.trace import Trace
from ..runtime.setup import POLICIES

ROWS: tuple[tuple[str, int, bool], ...] = (
    *((name, number, False) for number, name in enumerate(POLICIES)),
    *((f"{name}, per layer", POLICIES.index(name), True) for name in ("next-use", "lfru", "lru", "lfu")),
    ("belady", _abi.REPLAY_BELADY, False),
)
"""(name, EMOE_POLICY_*, slots per layer) of each row of the table; Belady's optimum last."""

SEGMENT = 16  # tokens of a segment, as in 2505.16056


def misses(trace: Trace, policy: int, n_slot: int, *, per_layer: bool = False, from_visit: int = 0) -> tuple[int, int]:
    """(uses, misses) of one policy at one cache size; visits before `from_visit` only fill the cache."""
    return _native.replay(
        n_expert=trace.n_expert,
        n_expert_used=trace.about["n_expert_used"],
        policy=policy,
        per_layer=per_layer,
        n_slot=n_slot,
        visits=(trace.visit_layer, trace.visit_n_token, trace.visit_n_use),
        uses=(trace.use_expert, trace.use_n_row, trace.use_weight),
        from_visit=from_visit,
    )


def table(
    trace: Trace,
    fractions: Sequence[float],
    *,
    from_visit: int,
    bytes_per_s: float | None = None,
    compute_s: float | None = None,
) -> list[dict[str, Any]]:
    """A row for each policy: hit rate, bytes read a token and, given speeds, the bound in tokens a second, by fraction.

    compute_s: time of a token with every expert in memory.
    """
    total = sum(trace.n_expert)
    expert_bytes = sum(n * size for n, size in zip(trace.n_expert, trace.about["expert_bytes"], strict=True)) / total
    n_token = max(1, (len(trace.visit_layer) - from_visit) / len(trace.n_expert))
    rows = []
    for name, policy, per_layer in ROWS:
        cells = []
        for fraction in fractions:
            n_slot = max(1, round(fraction * total))
            n_use, n_miss = misses(trace, policy, n_slot, per_layer=per_layer, from_visit=from_visit)
            read = n_miss * expert_bytes / n_token
            cell: dict[str, Any] = {
                "fraction": fraction,
                "n_slot": n_slot,
                "hit_rate": 1 - n_miss / n_use if n_use else 0.0,
                "bytes_per_token": read,
            }
            if bytes_per_s:
                cell["tok_s"] = 1 / max(read / bytes_per_s, compute_s or 0.0, 1e-9)
            cells.append(cell)
        rows.append({"policy": name, "cells": cells})
    return rows


def locality(trace: Trace, ratios: Sequence[float] = (1, 2, 3)) -> dict[str, Any]:
    """How local routing is over segments of tokens (2505.16056): does this model suit streaming, and at what size?

    srp: segment routing best performance, the share of uses that the k most used experts of each layer cover, chosen
    anew for each segment. sch: segment cache best hit rate by ratio: the same for ratio * k * layers experts chosen
    over all layers together, which is what one shared cache could do at best if it held still within a segment.
    neighbours: share of a token's experts that the token before used in the same layer.
    """
    n_layer, k = len(trace.n_expert), trace.about["n_expert_used"]
    tokens: list[dict[int, list[int]]] = []
    first = 0
    for layer, n_use in zip(trace.visit_layer, trace.visit_n_use, strict=True):
        if not tokens or layer in tokens[-1]:
            tokens.append({})
        tokens[-1][layer] = list(trace.use_expert[first : first + n_use])
        first += n_use
    covered = total = 0
    cached = dict.fromkeys(ratios, 0)
    for begin in range(0, len(tokens) - SEGMENT + 1, SEGMENT):
        counts: Counter[tuple[int, int]] = Counter()
        for token in tokens[begin : begin + SEGMENT]:
            counts.update((layer, expert) for layer, experts in token.items() for expert in experts)
        for layer in range(n_layer):
            of_layer = sorted((n for (at, _), n in counts.items() if at == layer), reverse=True)
            covered += sum(of_layer[:k])
        ranked = sorted(counts.values(), reverse=True)
        total += sum(ranked)
        for ratio in ratios:
            cached[ratio] += sum(ranked[: round(ratio * k * n_layer)])
    same = pairs = 0
    for before, now in zip(tokens, tokens[1:], strict=False):
        for layer, experts in now.items():
            same += len(set(experts) & set(before.get(layer, ())))
            pairs += len(experts)
    return {
        "segment": SEGMENT,
        "n_token": len(tokens),
        "srp": covered / total if total else None,
        "sch": {str(ratio): cached[ratio] / total if total else None for ratio in ratios},
        "neighbours": same / pairs if pairs else None,
    }


def timeline(trace: Trace) -> dict[str, Any]:
    """The trace in Chrome's format (chrome://tracing, Perfetto): batches, products, reads and stalls as lanes."""
    events: list[dict[str, Any]] = []
    starts = [b[1] for b in trace.batches] + list(trace.visit_ns)
    origin = min(starts, default=0)
    first_of = _firsts(trace.n_expert)

    def add(name: str, lane: str, begin: int, end: int, **args: Any) -> None:
        events.append(
            {
                "name": name, "cat": lane, "ph": "X", "pid": 1, "tid": lane,
                "ts": (begin - origin) / 1e3, "dur": max(0.0, (end - begin) / 1e3), "args": args,
            }
        )  # fmt: skip

    for n_token, begin, end, ahead, _ in trace.batches:
        add("decode" if n_token == 1 else f"prefill {n_token}", "batch", begin, end, reads_ahead=bool(ahead))
    for layer, matrix, begin, end in trace.products:
        add(f"layer {layer} product {matrix}", "expert products", begin, end)
    previous = 0
    for layer, ns in zip(trace.visit_layer, trace.visit_ns, strict=True):
        ended = max((end for _, _, _, end in trace.products[previous : previous + 4] if end <= ns), default=ns)
        while previous < len(trace.products) and trace.products[previous][3] <= ns:
            ended, previous = trace.products[previous][3], previous + 1
        add(f"layer {layer} attention and router", "llama.cpp", ended, ns)
    lanes: list[int] = []  # when each lane of reads is free
    for expert, matrices, ahead, size, asked, ended in sorted(trace.reads, key=lambda read: read[4]):
        lane = next((i for i, free in enumerate(lanes) if free <= asked), len(lanes))
        if lane == len(lanes):
            lanes.append(0)
        lanes[lane] = ended
        layer = max(i for i, first in enumerate(first_of) if first <= expert)
        kind = "ahead" if ahead else "needed"
        add(
            f"{kind} {layer}/{expert - first_of[layer]}", f"read {lane:02}", asked, ended,
            bytes=size, matrices=matrices,
        )  # fmt: skip
    for layer, matrix, begin, end in trace.stalls:
        add(f"stall in layer {layer}", "stalls", begin, end, matrix=matrix)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": trace.about}


def _firsts(n_expert: Sequence[int]) -> list[int]:
    firsts = [0]
    for n in n_expert[:-1]:
        firsts.append(firsts[-1] + n)
    return firsts
