"""How the next token is picked."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from .._abi import SamplerParams
from ..errors import UsageError

_MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Sampling:
    """Parameters of the sampler, named as in llama.cpp.

    temp: 0 always takes the likeliest token, whatever top_k, top_p, min_p and seed are: the same answer every time.
    top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
    repeat_penalty: 1 is off; it looks back on repeat_last_n tokens. seed: None draws one.
    Raises UsageError for values without meaning.
    """

    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        _check(0 <= self.temp < math.inf, "temp", self.temp, "0 (greedy) or more, like `0.8`")
        _check(0 <= self.top_k < 2**31, "top-k", self.top_k, "a whole number; 0 is off")
        _check(0 < self.top_p <= 1, "top-p", self.top_p, "above 0 and up to 1; 1 is off")
        _check(0 <= self.min_p <= 1, "min-p", self.min_p, "0 to 1; 0 is off")
        _check(0 < self.repeat_penalty < math.inf, "repeat-penalty", self.repeat_penalty, "above 0; 1 is off")
        _check(0 <= self.repeat_last_n < 2**31, "repeat-last-n", self.repeat_last_n, "0 or more tokens")
        _check(self.seed is None or 0 <= self.seed <= _MAX_SEED, "seed", self.seed, f"0 to {_MAX_SEED}")

    def params(self) -> SamplerParams:
        """The native struct, with a seed drawn if none was given."""
        seed = int.from_bytes(os.urandom(4), "little") if self.seed is None else self.seed
        return SamplerParams(
            seed=seed,
            temp=self.temp,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            top_k=self.top_k,
            repeat_last_n=self.repeat_last_n,
        )


def _check(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise UsageError(f"`--{name} {value}` makes no sense", hint=f"give {allowed}")
