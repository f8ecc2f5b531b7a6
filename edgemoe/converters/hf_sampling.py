"""generation_config.json to `general.sampling.*`: how the model's maker recommends to pick tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from .gguf_header import FLOAT32, INT32, Value, encode

# Hugging Face's names, and those of llama.cpp's own that its converter takes too.
_NAMES: dict[str, tuple[str, int]] = {
    "temperature": ("temp", FLOAT32),
    "top_k": ("top_k", INT32),
    "top_p": ("top_p", FLOAT32),
    "min_p": ("min_p", FLOAT32),
    "repetition_penalty": ("penalty_repeat", FLOAT32),
    "xtc_probability": ("xtc_probability", FLOAT32),
    "xtc_threshold": ("xtc_threshold", FLOAT32),
    "penalty_last_n": ("penalty_last_n", INT32),
    "penalty_repeat": ("penalty_repeat", FLOAT32),
    "mirostat": ("mirostat", INT32),
    "mirostat_tau": ("mirostat_tau", FLOAT32),
    "mirostat_eta": ("mirostat_eta", FLOAT32),
}
_MOST = 1e6  # more than any of them can mean


def sampling_values(config: Mapping[str, Any]) -> dict[str, Value]:
    """Metadata of what a generation config says; nothing of what does not hold with `do_sample: false`.

    Raises FormatError for values that are no numbers.
    """
    if config.get("do_sample") is False:
        return {}
    found: dict[str, Value] = {}
    for name, (key, kind) in _NAMES.items():
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FormatError(f"generation_config.json says `{name}` is {value!r:.60}, which is no number")
        if abs(value) > _MOST or (kind == INT32 and value != int(value)):
            raise FormatError(f"generation_config.json says `{name}` is {value!r:.60}, which makes no sense")
        found[f"general.sampling.{key}"] = encode(int(value) if kind == INT32 else float(value), kind)
    return found
