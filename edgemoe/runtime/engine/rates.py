"""What earlier runs learned of a model's experts: how often a token uses each. A cache that knows begins better.

Kept in the cache folder under the model's identity, and never part of an answer: it decides only which experts stay.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import StorageError
from ...paths import cache_dir, read_cached, write_cached, write_whole

if TYPE_CHECKING:
    from ..model import ModelInfo

_LEAST_TOKENS = 64  # of decode and prefill, before a run has anything to tell
_FOLDER = "usage"


def recall(model: ModelInfo) -> array[float] | None:
    """What is known, None when nothing is, or not of this model."""
    rates = array("f")
    try:
        raw = _path(model).read_bytes()
    except (OSError, StorageError):
        return None
    if len(raw) != model.n_expert_total * rates.itemsize:
        return None
    rates.frombytes(raw)
    if not all(0.0 <= rate <= 1.0 for rate in rates):  # a damaged file; NaN too
        return None
    return rates


def remember(model: ModelInfo, n_token: int, rates: array[float]) -> None:
    """Keep what was learned in n_token tokens for the next run. A failure costs a cold start, so it is ignored."""
    if n_token >= _LEAST_TOKENS and len(rates) == model.n_expert_total:
        write_whole(f"{_FOLDER}/{_name(model)}", rates.tobytes())


_NEAR = 0.1  # a cache whose slots differ by less than this share is of the same size
_KEEP_HITS = 16  # sizes of cache


def remember_hits(model: ModelInfo, stats: Mapping[str, Any]) -> None:
    """Keep the share of hits that this run had, by the slots of its cache. stats: the fields of `emoe_stats`."""
    n_use = stats["n_hit"] + stats["n_miss"]
    if stats["n_decode"] < _LEAST_TOKENS or not n_use:
        return
    known = _hits(model)
    known.pop(str(stats["n_slot"]), None)
    kept = dict([*known.items(), (str(stats["n_slot"]), round(stats["n_hit"] / n_use, 4))][-_KEEP_HITS:])
    write_cached(_hits_name(model), kept)


def hit_rate(model: ModelInfo, n_slot: int) -> float | None:
    """The share of hits that earlier runs had with a cache of about so many slots; None when there was none."""
    near = [
        (abs(int(slots) - n_slot), rate)
        for slots, rate in _hits(model).items()
        if abs(int(slots) - n_slot) <= _NEAR * n_slot
    ]
    return min(near)[1] if near else None


def _hits(model: ModelInfo) -> dict[str, float]:
    found = read_cached(_hits_name(model))
    return {
        slots: float(rate)
        for slots, rate in found.items()
        if slots.isdecimal() and isinstance(rate, (int, float)) and 0 <= rate <= 1
    }


def _hits_name(model: ModelInfo) -> str:
    return f"{_FOLDER}/{model.identity:016x}-hits.json"


def _path(model: ModelInfo) -> Path:
    return Path(os.fspath(cache_dir()), _FOLDER, _name(model))


def _name(model: ModelInfo) -> str:
    return f"{model.identity:016x}.f32"
