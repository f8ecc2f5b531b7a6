"""What earlier runs learned of a model's experts: how often a token uses each. A cache that knows begins better.

Kept in the cache folder under the model's identity, and never part of an answer: it decides only which experts stay.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import StorageError
from ...paths import cache_dir, write_whole

if TYPE_CHECKING:
    from ..gguf.model import ModelInfo

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


def _path(model: ModelInfo) -> Path:
    return Path(os.fspath(cache_dir()), _FOLDER, _name(model))


def _name(model: ModelInfo) -> str:
    return f"{model.identity:016x}.f32"
