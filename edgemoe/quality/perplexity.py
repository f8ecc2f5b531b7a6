"""Perplexity of a model over windows of text, and its distance to a reference."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .reference import Progress, Reference, RowsOf
from .windows import F32, F64, Windows, divergence


@dataclass(frozen=True)
class Distance:
    """From a reference to a model, over the scored tokens; KL divergences in nats.

    kl: mean, with its standard error. kl_p99 and so on: percentiles over tokens. top1: share of tokens whose likeliest
    word is the reference's. ppl: of the reference. ln_ratio: ln(ppl of the model / ppl of the reference), with its
    standard error, which is smaller than that of either since both met the same text.
    """

    reference: str
    ppl: float
    ln_ratio: float
    ln_ratio_error: float
    kl: float
    kl_error: float
    kl_median: float
    kl_p90: float
    kl_p99: float
    kl_max: float
    top1: float


@dataclass(frozen=True)
class Score:
    """ppl: exp of the mean negative log-likelihood, with its standard error. n_token: tokens scored."""

    model: str
    n_ctx: int
    n_window: int
    n_token: int
    ppl: float
    ppl_error: float
    distance: Distance | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def score(
    name: str,
    windows: Windows,
    rows_of: RowsOf,
    reference: Reference | None,
    progress: Progress,
) -> Score:
    """Score all windows of the model `name`."""
    losses: list[float] = []
    reference_losses: list[float] = []
    divergences: list[float] = []
    n_same = 0
    for i in range(len(windows)):
        progress(_glance(name, losses, divergences), i, len(windows))
        known = reference.rows(windows, i) if reference else None
        for row, target in zip(rows_of(i), windows.targets(i), strict=True):
            losses.append(-float(row[target]))
            if known is not None:
                other: F32 = next(known)
                reference_losses.append(-float(other[target]))
                divergences.append(divergence(other, row))
                n_same += int(row.argmax() == other.argmax())
    progress(_glance(name, losses, divergences), len(windows), len(windows))
    loss, loss_error = _mean(losses)
    distance = None
    if reference:
        difference, difference_error = _mean(np.subtract(losses, reference_losses))
        kl, kl_error = _mean(divergences)
        median, p90, p99 = np.percentile(divergences, [50, 90, 99])
        distance = Distance(
            reference=reference.model,
            ppl=math.exp(_mean(reference_losses)[0]),
            ln_ratio=difference,
            ln_ratio_error=difference_error,
            kl=kl,
            kl_error=kl_error,
            kl_median=float(median),
            kl_p90=float(p90),
            kl_p99=float(p99),
            kl_max=max(divergences),
            top1=n_same / len(divergences),
        )
    ppl = math.exp(loss)
    return Score(name, windows.n_ctx, len(windows), len(losses), ppl, ppl * loss_error, distance)


def _mean(values: list[float] | F64) -> tuple[float, float]:
    """Mean and its standard error."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.inf


def _glance(name: str, losses: list[float], divergences: list[float]) -> str:
    text = name
    if losses:
        text += f": perplexity {math.exp(sum(losses) / len(losses)):.3f}"
    if divergences:
        text += f", KL {sum(divergences) / len(divergences):.5f}"
    return text
