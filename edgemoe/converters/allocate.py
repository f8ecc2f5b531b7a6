"""Which type every expert matrix gets, so that a model of a given size answers as little differently as possible.

Pure: a calibration and a target in, an Allocation out. The program chooses one type for every (layer, matrix, expert):

    minimise   sum of damage(layer, matrix, expert, type) + mu * expected miss bytes
    subject to sum of bytes <= the target; Super Experts in 8 bits or more

damage is the divergence in nats a token to expect when only that matrix is quantized: the layer's sensitivity, times
the squared output of the expert over the calibration text, times the share of it that the type gets wrong. A
multiple-choice knapsack: the relaxation is solved exactly along the convex hulls of all matrices, the rest of the
budget is filled by what gains most, and the facts say how far the result can be from the optimum (matrices are many
and small: next to nothing).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..units import format_size
from .allocation import Allocation
from .calibration import STATS, Calibration
from .ggml import bits as bits_of
from .ggml import fits, row_bytes

F64 = npt.NDArray[np.float64]
Item = tuple[int, str, int]  # layer, role, expert

METHODS = ("program", "per-layer", "uniform", "frequency", "edgemoe")
"""program: the above. The others are baselines: per-layer: the program with one type a matrix of a layer, which is what
llama.cpp can load. uniform: the largest single type that fits. frequency: experts by how often they are used, and
edgemoe: by what they lose in few bits (arXiv 2308.14352), the first in the larger of two types, the rest in the
smaller.
"""

GUARD_BITS = 8.0
_EXTREME = 10.0  # times the median expert's largest output


@dataclass(frozen=True)
class Table:
    """One row a choice to make. items: the matrices that share it. n_bytes, damage: [row, type], inf: may not be."""

    items: tuple[tuple[Item, ...], ...]
    types: tuple[str, ...]
    n_bytes: F64
    damage: F64


def outlier_limit(largest: F64) -> float:
    """What a Super Expert's largest output is above, from those of all experts.

    The 99.5th percentile and a tenth of the largest, as in the paper; and 10 times the median, since every model has a
    99.5th percentile.
    """
    return float(max(np.percentile(largest, 99.5), largest.max() / 10, _EXTREME * np.median(largest)))


def super_experts(calibration: Calibration) -> list[tuple[int, int]]:
    """(layer, expert) of rare, extreme outliers in what down gives (arXiv 2507.23279), in the first three quarters."""
    column = STATS.index("largest")
    return extreme_experts({i: layer.stats[:, column].astype(np.float64) for i, layer in calibration.layers.items()})


def extreme_experts(largest: Mapping[int, F64]) -> list[tuple[int, int]]:
    """`super_experts`, from the largest output of each expert, by layer."""
    layers = sorted(largest)
    least = outlier_limit(np.concatenate([largest[i] for i in layers]))
    early = layers[: -(-3 * len(layers) // 4)]
    return [(i, int(e)) for i in early for e in np.flatnonzero(largest[i] > least)]


def make_table(calibration: Calibration, types: Sequence[str] | None = None, *, guard: bool = True) -> Table:
    """Every matrix a row. types: those to choose among, None: all that were measured. Raises UsageError."""
    names = tuple(types or calibration.types)
    for name in names:
        if name not in calibration.types:
            raise UsageError(f"the calibration has no errors of {name}", hint=f"it has {', '.join(calibration.types)}")
    index = [calibration.types.index(name) for name in names]
    guarded = set(super_experts(calibration)) if guard else set()
    allowed = np.array([bits_of(name) >= GUARD_BITS for name in names])
    items: list[tuple[Item, ...]] = []
    sizes, damages = [], []
    for layer, known in sorted(calibration.layers.items()):
        output2 = known.stats[:, STATS.index("output2")].astype(np.float64) / max(1, calibration.n_token)
        # An expert that the text never used is as important as the least used one, not free.
        output2 = np.maximum(output2, output2[output2 > 0].min() if (output2 > 0).any() else 1.0)
        for role, errors in known.errors.items():
            n_row, n_col = known.shapes[role]
            size = np.array([n_row * row_bytes(name, n_col) if fits(name, n_col) else np.inf for name in names])
            if not np.isfinite(size).any():
                raise UsageError(
                    f"no type fits rows of {n_col} weights in blk.{layer} {role}", hint="calibrate with other `--types`"
                )
            damage = calibration.sensitivity[layer] * output2[:, None] * errors[:, index].astype(np.float64)
            for expert in range(known.n_expert):
                items.append(((layer, role, expert),))
                guard_size = np.where(allowed, size, np.inf) if (layer, expert) in guarded and allowed.any() else size
                sizes.append(guard_size)
                damages.append(damage[expert])
    return Table(tuple(items), names, np.array(sizes), np.where(np.isfinite(sizes), damages, np.inf))


def grouped(table: Table, group: Callable[[Item], object]) -> Table:
    """Rows whose items share a group become one choice."""
    order: dict[object, list[int]] = {}
    for row, items in enumerate(table.items):
        order.setdefault(group(items[0]), []).append(row)
    joined = tuple(tuple(item for row in rows for item in table.items[row]) for rows in order.values())
    n_bytes = np.array([table.n_bytes[rows].sum(0) for rows in order.values()])
    damage = np.array([table.damage[rows].sum(0) for rows in order.values()])
    return Table(joined, table.types, n_bytes, damage)


def solve(table: Table, budget_bytes: float) -> tuple[npt.NDArray[np.int64], float]:
    """The type of each row within the budget, and a lower bound of the damage of any choice.

    Raises UsageError when even the smallest types take more.
    """
    hulls = [_hull(b, d) for b, d in zip(table.n_bytes, table.damage, strict=True)]
    chosen = np.array([hull[0] for hull in hulls])
    rows = np.arange(len(hulls))
    used = float(table.n_bytes[rows, chosen].sum())
    if used > budget_bytes:
        raise UsageError(
            f"the experts take at least {format_size(used)}, the target leaves {format_size(budget_bytes)}",
            hint="ask for a larger size, or calibrate with smaller `--types`",
        )
    steps = [0] * len(hulls)
    queue = [(_slope(table, row, hull, 0), row) for row, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(queue)
    bound: float | None = None
    damage = float(table.damage[rows, chosen].sum())
    while queue:
        slope, row = heapq.heappop(queue)
        hull, step = hulls[row], steps[row]
        more = float(table.n_bytes[row, hull[step + 1]] - table.n_bytes[row, hull[step]])
        if used + more > budget_bytes:
            # The relaxation would take a part of this step; later steps gain less a byte, but may still fit whole.
            bound = damage + slope * (budget_bytes - used) if bound is None else bound
            continue
        used += more
        damage += slope * more
        steps[row] += 1
        chosen[row] = hull[step + 1]
        if step + 2 < len(hull):
            heapq.heappush(queue, (_slope(table, row, hull, step + 1), row))
    return chosen, damage if bound is None else bound


def _hull(n_bytes: F64, damage: F64) -> list[int]:
    """Types on the lower convex hull, smallest first."""
    order = sorted((b, d, i) for i, (b, d) in enumerate(zip(n_bytes, damage, strict=True)) if np.isfinite(b))
    hull: list[tuple[float, float, int]] = []
    for b, d, i in order:
        if hull and d >= hull[-1][1]:
            continue
        while hull and b == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and (hull[-1][1] - d) * (hull[-1][0] - hull[-2][0]) >= (hull[-2][1] - hull[-1][1]) * (
            b - hull[-1][0]
        ):
            hull.pop()
        hull.append((b, d, i))
    return [i for _, _, i in hull]


def _slope(table: Table, row: int, hull: list[int], step: int) -> float:
    a, b = hull[step], hull[step + 1]
    return float((table.damage[row, b] - table.damage[row, a]) / (table.n_bytes[row, b] - table.n_bytes[row, a]))


def allocate(
    calibration: Calibration,
    *,
    bits: float | None = None,
    n_bytes: int | None = None,
    types: Sequence[str] | None = None,
    method: str = "program",
    misses: Mapping[tuple[int, int], float] | None = None,
    miss_cost: float = 0.0,
) -> Allocation:
    """Types for a target: mean bits a weight over all experts, or their bytes. Raises UsageError.

    misses: (layer, expert) -> reads a token to expect (`expected_misses`); miss_cost: divergence in nats a token that
    a megabyte read a token is worth. Together they are the streaming term: bytes of experts often read cost more.
    """
    if (bits is None) == (n_bytes is None):
        raise UsageError("the target is either bits a weight or bytes", hint="give one of the two")
    if method not in METHODS:
        raise UsageError(f"`{method}` is no way to allocate", hint=f"one of {', '.join(METHODS)}")
    # Baselines know no Super Experts; one type a layer would guard a whole layer for one expert.
    table = make_table(calibration, types, guard=method == "program")
    n_weight = sum(
        known.n_expert * n_row * n_col
        for known in calibration.layers.values()
        for n_row, n_col in known.shapes.values()
    )
    budget = float(n_bytes) if n_bytes is not None else float(bits or 0) * n_weight / 8
    if misses and miss_cost:
        read = np.array([sum(misses.get((layer, expert), 0.0) for layer, _, expert in items) for items in table.items])
        table = Table(
            table.items, table.types, table.n_bytes,
            table.damage + miss_cost * read[:, None] * np.where(np.isfinite(table.n_bytes), table.n_bytes, 0) / 1e6,
        )  # fmt: skip
    if method in ("program", "per-layer"):
        solved = grouped(table, lambda item: item[:2]) if method == "per-layer" else table
        chosen, bound = solve(solved, budget)
    else:
        solved, chosen = _baseline(calibration, table, method, budget)
        bound = float("nan")
    rows = np.arange(len(chosen))
    used, damage = float(solved.n_bytes[rows, chosen].sum()), float(solved.damage[rows, chosen].sum())
    if used > budget * (1 + 1e-9):
        raise UsageError(
            f"the smallest {method} allocation takes {format_size(used)}, the target leaves {format_size(budget)}",
            hint="ask for a larger size",
        )
    facts = {
        "method": method,
        "bits": 8 * used / n_weight,
        "expert_bytes": int(used),
        "predicted_divergence": damage,
        "least_possible": bound,
        "super_experts": [list(pair) for pair in super_experts(calibration)],
        "n_token": calibration.n_token,
    }
    return _allocation(solved, chosen, facts)


def _allocation(table: Table, chosen: npt.NDArray[np.int64], facts: Mapping[str, object]) -> Allocation:
    found: dict[int, dict[str, dict[int, str]]] = {}
    for items, i in zip(table.items, chosen, strict=True):
        for layer, role, expert in items:
            found.setdefault(layer, {}).setdefault(role, {})[expert] = table.types[i]
    types = {
        layer: {role: tuple(names[e] for e in range(len(names))) for role, names in roles.items()}
        for layer, roles in sorted(found.items())
    }
    return Allocation(types, {}, facts)


def _baseline(
    calibration: Calibration, table: Table, method: str, budget: float
) -> tuple[Table, npt.NDArray[np.int64]]:
    """One type for all that fit; or two, the larger for the experts that rank first, as many as fit."""
    experts = grouped(table, lambda item: (item[0], item[2]))
    totals = experts.n_bytes.sum(0)
    # Of two types of a size the one with the smaller error counts.
    order = sorted(range(len(table.types)), key=lambda i: (totals[i], -float(experts.damage[:, i].sum())))
    inside = [i for i in order if totals[i] <= budget]
    if not inside:
        return experts, np.full(len(experts.items), order[0])
    low = inside[-1]
    chosen = np.full(len(experts.items), low)
    if method == "uniform":
        return experts, chosen
    # As in the papers, two levels two bits apart, around the target.
    mean = 8 * budget / totals[low] * bits_of(table.types[low]) / 8
    low = min(
        inside, key=lambda i: abs(bits_of(table.types[i]) - (mean - 1)) + 1e-3 * float(experts.damage[:, i].sum())
    )
    high = min(
        order, key=lambda i: abs(bits_of(table.types[i]) - (mean + 1)) + 1e-3 * float(experts.damage[:, i].sum())
    )
    chosen[:] = low
    if method == "frequency":
        stats = {layer: known.stats[:, STATS.index("tokens")] for layer, known in calibration.layers.items()}
        rank = np.array([stats[items[0][0]][items[0][2]] for items in experts.items])
    else:
        rank = experts.damage[:, low] - experts.damage[:, high]
    used = float(totals[low])
    for row in np.argsort(-rank, kind="stable"):
        more = float(experts.n_bytes[row, high] - experts.n_bytes[row, low])
        if used + more > budget:
            break
        used += more
        chosen[row] = high
    return experts, chosen


def expected_misses(calibration: Calibration, n_slot: int) -> dict[tuple[int, int], float]:
    """Reads of each expert a token, for a cache of n_slot experts that keeps the recent ones (Che's approximation)."""
    keys, rates = [], []
    for layer, known in calibration.layers.items():
        for expert, n in enumerate(known.stats[:, STATS.index("tokens")]):
            keys.append((layer, expert))
            rates.append(float(n) / max(1, calibration.n_token))
    rate = np.array(rates)
    if n_slot >= int((rate > 0).sum()):
        return dict.fromkeys(keys, 0.0)
    low, high = 0.0, 1.0
    while (1 - np.exp(-rate * high)).sum() < n_slot:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-rate * middle)).sum() < n_slot else (low, middle)
    return {key: float(r * np.exp(-r * high)) for key, r in zip(keys, rate, strict=True)}
