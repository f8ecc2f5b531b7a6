"""`/set`: how answers are picked, changed in a chat."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..runtime.text.sampling import Sampling

_WHOLE = ("top_k", "repeat_last_n", "seed", "mirostat", "max_tokens")
_PARTS = (
    "temp", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "top_n_sigma",
    "xtc_probability", "xtc_threshold", "dry_multiplier", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
# What Ollama calls them.
_NAMES = {"temperature": "temp", "num_predict": "max_tokens", "n_predict": "max_tokens"}
# What is no part of sampling, and where it is.
_ELSEWHERE = {
    "system": "it is `/system TEXT`",
    "memory": "it is `/memory SIZE`",
    "num_ctx": "the context is given at the start: `edgemoe chat -c N`",
    "ctx": "the context is given at the start: `edgemoe chat -c N`",
    "verbose": "`/stats live` shows a table while answers come",
    "history": "`edgemoe chat --no-history` leaves nothing behind",
    "nohistory": "`edgemoe chat --no-history` leaves nothing behind",
    "format": "`edgemoe serve` takes formats of answers",
}


def changed(sampling: Sampling, max_tokens: int | None, text: str) -> tuple[Sampling, int | None]:
    """What "temp 0.7" makes of them. Raises UsageError."""
    words = text.removeprefix("parameter ").replace("=", " ").split()
    name = words[0].lstrip("-").replace("-", "_").lower() if words else ""
    name = _NAMES.get(name, name)
    if name not in (*_WHOLE, *_PARTS) or len(words) != 2:
        known = "`/set` shows the names; write `/set temp 0.7`"
        raise UsageError(f"`/set {text:.60}` sets nothing", hint=_ELSEWHERE.get(name, known))
    try:
        value = int(words[1]) if name in _WHOLE else float(words[1])
    except ValueError:
        raise UsageError(f"`{words[1]:.40}` is no number for `{name}`", hint="write `/set temp 0.7`") from None
    if name == "max_tokens":
        if value == 0 or value < -1:
            raise UsageError(f"an answer of {value} tokens makes no sense", hint="give 1 or more; -1 is no limit")
        return sampling, None if value == -1 else int(value)
    change: dict[str, Any] = {name: None if name == "seed" and value == -1 else value}
    return dataclasses.replace(sampling, **change), max_tokens


def lines(sampling: Sampling, max_tokens: int | None) -> list[str]:
    """Each setting and its value."""
    rows = {name: getattr(sampling, name) for name in (*_PARTS, *_WHOLE) if name != "max_tokens"}
    shown = {
        **rows,
        "seed": "drawn" if sampling.seed is None else sampling.seed,
        "max_tokens": max_tokens or "no limit",
    }
    return [f"{name:<19}{value}" for name, value in shown.items()]
