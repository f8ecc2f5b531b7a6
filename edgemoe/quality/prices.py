"""What leaving out experts costs, for `--lossy`: a cost an expert, and what the costs come to together.

The cost of a use is an estimate from one-layer disturbances. Small ones add up to more than their sum, since they flip
routings behind them; so the divergence is measured at several limits, with the less used half of each layer's experts
taken for missing, and the runtime's controller (`native/src/pipeline/price.h`) reads the table backwards.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..converters.allocate import extreme_experts
from ..converters.calibration import Prices
from ..errors import UnsupportedError
from .experts import FIELDS, LayerSums, Probe
from .windows import F32, F64

if TYPE_CHECKING:
    from ..runtime.engine.collected import Collected

N_STEP = 12
"""Limits tried at most."""
_STEP = 1.7  # from one limit to the next
_BEGIN = 0.1  # the first: times the median cost of a use
_LEAST_NATS, _ENOUGH_NATS = 0.004, 0.12  # of the table: below, chance decides; above, nobody asks
_FULL = 1.02  # times as much skipped as before: else nothing is left to skip
_PRIOR = 16  # uses: an expert that had fewer is judged by its layer as much as by them


def costs_of(sums: Sequence[LayerSums], sensitivity: Sequence[float]) -> list[F32]:
    """By layer, [n_expert]: nats for leaving out a use with router weight 1 where the residual stream has a root mean
    square of 1. Infinite for Super Experts, and for experts that the text never used: nobody knows what they are.
    """
    never = extreme_experts({i: layer.experts[:, FIELDS.index("largest")] for i, layer in enumerate(sums)})
    found = []
    for i, layer in enumerate(sums):
        n, weight2, output2 = (layer.experts[:, FIELDS.index(name)] for name in ("tokens", "weight2", "output2"))
        # Of the layer: mean w^2 of a use, and |output|^2 of a unit of w^2.
        unit = weight2.sum() / max(1.0, n.sum())
        prior = output2.sum() / max(weight2.sum(), 1e-30)
        known = (output2 + _PRIOR * unit * prior) / (weight2 + _PRIOR * unit)
        cost = np.where(n > 0, sensitivity[i] * known, np.inf)
        cost[[expert for number, expert in never if number == i]] = np.inf
        found.append(cost.astype(np.float32))
    return found


def less_used(sums: Sequence[LayerSums]) -> list[bytes]:
    """By layer, a byte an expert: 1 for the half that the text used less."""
    found = []
    for layer in sums:
        n: F64 = layer.experts[:, FIELDS.index("tokens")]
        flags = np.zeros(len(n), np.uint8)
        flags[np.argsort(-n, kind="stable")[-(-len(n) // 2) :]] = 1
        found.append(flags.tobytes())
    return found


def measure_prices(
    probe: Probe,
    collected: Collected,
    sums: Sequence[LayerSums],
    sensitivity: Mapping[int, float],
    on_step: Callable[[], None],
) -> Prices:
    """Raises UnsupportedError for a model whose router or residual stream the engine does not see."""
    if any(not known for layer in range(len(sums)) for known in collected.sees(layer)):
        raise UnsupportedError(
            "what leaving out experts costs cannot be measured here: the graph hides router weights or residuals"
        )
    costs = costs_of(sums, [sensitivity[i] for i in range(len(sums))])
    cost = array("f", np.concatenate(costs).tobytes())
    missing = b"".join(less_used(sums))
    limit = _BEGIN * _median_use(sums, costs)
    rows: list[tuple[float, float, float]] = []
    raw_before = 0.0
    for _ in range(N_STEP):
        collected.skip(cost, missing, limit)
        try:
            nats = probe.divergence()
            raw = collected.skipped() / probe.n_token
        finally:
            collected.no_skip()
        on_step()
        if nats >= _LEAST_NATS and (not rows or (raw > rows[-1][1] and nats > rows[-1][2])):
            rows.append((limit, raw, nats))
        if nats > _ENOUGH_NATS or (rows and raw < _FULL * raw_before):
            break
        raw_before = raw
        limit *= _STEP
    limits, raws, divergences = zip(*rows, strict=True) if rows else ((), (), ())
    if len(rows) < 2:
        raise UnsupportedError("leaving out experts of this model changes nothing that could be measured")
    return Prices(np.concatenate(costs), limits, raws, divergences)


def nats_of(prices: Prices | None, cost: float) -> float:
    """Divergence in nats a token to expect of changes whose costs sum up to so much a token, as the table has it of
    skips: small sums come to more than themselves. Without a table the sum itself.
    """
    if prices is None or cost <= 0:
        return max(0.0, cost)
    if cost > prices.raw[-1]:  # in proportion to what was measured last
        return prices.nats[-1] * cost / prices.raw[-1]
    return float(np.interp(cost, prices.raw, prices.nats))


def skipped_uses(prices: Prices, nats: float) -> float:
    """Uses of experts a token that a price leaves out where enough are missing."""
    cost, limit = (float(np.interp(nats, prices.nats, values)) for values in (prices.raw, prices.limit))
    # Of the costs below the limit the larger ones are the more frequent: their mean is nearer to it than to 0.
    return cost / (2 / 3 * limit)


def _median_use(sums: Sequence[LayerSums], costs: Sequence[F32]) -> float:
    each = []
    for layer, cost in zip(sums, costs, strict=True):
        n, weight2 = (layer.experts[:, FIELDS.index(name)] for name in ("tokens", "weight2"))
        usable = (n > 0) & np.isfinite(cost)
        each.append(cost[usable] * weight2[usable] / n[usable])
    return float(np.median(np.concatenate(each)))
