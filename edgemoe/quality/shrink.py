"""What a model could be made into for a memory budget: each way with its divergence and speed, predicted.

Nothing is computed with the model. A divergence is what the calibration says: the sum of what errors cost in each
layer, put through the table of what such sums came to when experts were left out (`nats_of`). A speed is the plan's:
what of the experts fits, how often that hits, and what drive and kernels give. docs/quality.md says how far off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..converters.allocate import allocate
from ..converters.allocation import Allocation
from ..converters.calibration import STATS, Calibration
from ..converters.ggml import bits as bits_of
from ..converters.ggml import row_bytes
from ..converters.prune import Kept, experts_kept, n_group_of, pruned_counts
from ..converters.source import Source
from ..errors import UnsupportedError, UsageError
from ..runtime.budget.planner import Plan, Speeds, hit_rate, predict
from ..runtime.model import ModelInfo
from .prices import nats_of, skipped_uses

BITS = (6.5, 5.5, 4.5, 4.0, 3.5, 3.0, 2.5)
SHARES = (0.1, 0.25, 0.5)
_ROUNDS = 8  # to find the fewest bits within a price
_LEAST_GAIN = 0.97  # of the source's bits: fewer are worth a row


@dataclass(frozen=True)
class Way:
    """One thing to do. kind: "exact", "lossy", "bits" or "prune"; amount: nats, bits a weight or share of experts.

    nats: divergence to expect. expert_bytes: of all experts. fraction: of them in memory. low, high: tokens a second,
    as in a plan. read_bytes: of experts a token, at `high`.
    """

    kind: str
    amount: float
    nats: float
    expert_bytes: int
    fraction: float
    low: float
    high: float
    read_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ways(
    source: Source, info: ModelInfo, plan: Plan, speeds: Speeds, calibration: Calibration, price: float
) -> list[Way]:
    """The model as it is, what `--lossy` gives at the price, fewer bits, fewer experts; the last two at fixed steps and
    at the most that the price allows.
    """
    size, token = _source_bytes(source, calibration)

    def way(kind: str, amount: float, nats: float, n_bytes: int, token_bytes: float, share: float = 0.0) -> Way:
        ratio = n_bytes / size
        changed = replace(
            info,
            expert_bytes=round(info.expert_bytes * ratio),
            slot_bytes=round(info.slot_bytes * ratio),
            token_bytes=round(info.token_bytes * token_bytes / token),
        )
        fraction = plan.fraction if kind in ("exact", "lossy") else min(1.0, plan.cache_bytes / changed.slot_bytes)
        known = speeds
        if kind != "exact":  # what earlier runs had is the hit rate of the file as it is
            known = replace(speeds, hit_rate=None)
        hits = hit_rate(fraction) if known.hit_rate is None else known.hit_rate
        if share:
            hits = min(1.0, hits + share)
            known = replace(known, hit_rate=hits)
        found = predict(changed, fraction, known)
        read = round(changed.token_bytes * (1 - hits))
        return Way(kind, amount, nats, changed.expert_bytes, fraction, found.low, found.high, read)

    found = [way("exact", 0.0, 0.0, size, token)]
    if calibration.prices is not None and plan.fraction < 1:
        share = skipped_uses(calibration.prices, price) / (info.n_moe_layer * info.n_expert_used)
        found.append(way("lossy", price, price, size, token, share))
    for bits, nats, chosen in _bits(source, size, calibration, price):
        found.append(way("bits", bits, nats, *_allocated_bytes(calibration, chosen)))
    for share, nats, kept in _prunes(source, calibration, price):
        left = sum(len(picked) for picked in kept.values()) / info.n_expert_total
        found.append(way("prune", share, nats, round(size * left), token))
    return found


def best(found: Sequence[Way], price: float) -> Way:
    """The fastest within the price; of equals the one that costs less."""
    return max((way for way in found if way.nats <= price), key=lambda way: (round(way.low * way.high, 6), -way.nats))


def _most(allowed: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest number from low to high that is allowed; high is."""
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if allowed(middle) else (middle, high)
    return high


def _bits(
    source: Source, size: int, calibration: Calibration, price: float
) -> Iterator[tuple[float, float, Allocation]]:
    """(mean bits, divergence, types), most bits first. size: of all experts as they are, bytes."""
    n_weight = sum(rows.n_row * rows.n_col for stack in source.experts.values() for rows in stack)
    most = _LEAST_GAIN * 8 * size / n_weight

    def solve(bits: float) -> tuple[float, Allocation] | None:
        try:
            chosen = allocate(calibration, bits=bits)
        except UsageError:  # fewer than the smallest types take
            return None
        return nats_of(calibration.prices, chosen.facts["predicted_divergence"]), chosen

    def allowed(bits: float) -> bool:
        solved = solve(bits)
        return solved is not None and solved[0] <= price

    steps = {bits for bits in BITS if bits < most}
    if calibration.types and allowed(most):
        steps.add(round(_most(allowed, min(bits_of(name) for name in calibration.types), most) + 0.005, 2))
    for bits in sorted(steps, reverse=True) if calibration.types else ():
        solved = solve(bits)
        if solved is not None:
            yield bits, *solved


def _prunes(source: Source, calibration: Calibration, price: float) -> Iterator[tuple[float, float, Kept]]:
    """(share, divergence, experts that stay), smallest share first."""
    try:
        counts = pruned_counts(source, calibration)
    except (UsageError, UnsupportedError):  # experts cannot leave this model
        return
    n_expert = len(next(iter(source.experts.values())))
    n_group = n_group_of(source)
    priced = []
    for n_out in counts:
        kept = experts_kept(calibration, n_out, n_group)
        priced.append((n_out, nats_of(calibration.prices, _pruned_cost(calibration, kept)), kept))
    wanted = {max((n for n in counts if n <= share * n_expert), default=0) for share in SHARES}
    wanted.add(max((n_out for n_out, nats, _ in priced if nats <= price), default=0))
    for n_out, nats, kept in priced:
        if n_out in wanted:
            yield n_out / n_expert, nats, kept


def _pruned_cost(calibration: Calibration, kept: Kept) -> float:
    """What the experts that left gave, by what an error in their layer costs; nats a token, before `nats_of`."""
    column = STATS.index("output2")
    total = 0.0
    for number, layer in calibration.layers.items():
        gave = layer.stats[:, column].astype(np.float64)
        total += calibration.sensitivity[number] * float(gave.sum() - gave[kept[number]].sum())
    return total / max(1, calibration.n_token)


def _uses(calibration: Calibration, number: int) -> np.ndarray[Any, Any]:
    """A token, by expert."""
    return calibration.layers[number].stats[:, STATS.index("tokens")].astype(np.float64) / max(1, calibration.n_token)


def _source_bytes(source: Source, calibration: Calibration) -> tuple[int, float]:
    """Of all experts, and of those that a token uses."""
    size, token = 0, 0.0
    for (layer, _, _), stack in source.experts.items():
        each = np.array([rows.n_row * row_bytes(rows.type, rows.n_col) for rows in stack])
        size += int(each.sum())
        token += float(each @ _uses(calibration, layer))
    return size, token


def _allocated_bytes(calibration: Calibration, chosen: Allocation) -> tuple[int, float]:
    """Of all experts, and of those that a token uses, in the types that were chosen."""
    size, token = 0, 0.0
    for number, layer in calibration.layers.items():
        for role, (n_row, n_col) in layer.shapes.items():
            each = np.array([n_row * row_bytes(name, n_col) for name in chosen.types[number][role]])
            size += int(each.sum())
            token += float(each @ _uses(calibration, number))
    return size, token
