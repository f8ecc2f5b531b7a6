"""How the next token is picked."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import _native
from ..._abi import SamplerParams
from ...errors import UsageError
from . import bounds

MAX_SEED = 2**32 - 1
FIXED_SEED = 1234  # where nobody asks for another, so that a question keeps its answer

_OFF = {
    "presence_penalty": 0, "frequency_penalty": 0, "typical_p": 1, "top_n_sigma": 0, "xtc_probability": 0,
    "dry_multiplier": 0, "mirostat": 0, "dynatemp_range": 0, "ignore_eos": False, "sequence": "",
}  # fmt: skip
_TOLD = ("temp", "top_k", "top_p", "min_p")  # also where no model names them
_MORE = (  # what the constraint has beside biases, grammar and breakers
    *_OFF, "xtc_threshold", "dry_base", "dry_allowed_length", "dry_last_n", "mirostat_tau", "mirostat_eta",
    "dynatemp_exponent",
)  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """Parameters of the sampler, named as in llama.cpp.

    temp: 0 always takes the likeliest token, whatever top_k, top_p, min_p and seed are: the same answer every time.
    top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
    repeat_penalty: 1 is off; it looks back on repeat_last_n tokens, and so do presence_penalty and frequency_penalty
    (0 is off), of which the first is taken once and the second as often as a token was picked. seed: None draws one.
    logit_bias: (token, value) pairs; the value is added to the token's logit.
    typical_p (1 is off), top_n_sigma, xtc_*, dry_*, mirostat (1 or 2 in place of the other filters) and dynatemp_* are
    llama.cpp's samplers of these names; 0 is off. dry_breakers: None for its own. ignore_eos: the model cannot end.
    sequence: samplers by llama.cpp's names in the order in which they act, "top_k;temperature", the others off; "": all
    in its own order.
    grammar: GBNF with a rule `root` which the answer follows, from the start, or from where grammar_trigger was first
    written (see `edgemoe.runtime.text.grammar` for grammars of JSON schemas).
    Raises UsageError for values without meaning.
    """

    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str = ""
    grammar_trigger: str = ""
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    dry_breakers: tuple[str, ...] | None = None
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    ignore_eos: bool = False
    sequence: str = ""

    def __post_init__(self) -> None:
        _check(0 <= _single(self.temp) < math.inf, "temp", self.temp, "0 (greedy) or more, like `0.8`")
        _check(0 <= self.top_k < 2**31, "top-k", self.top_k, "a whole number; 0 is off")
        _check(0 < _single(self.top_p) <= 1, "top-p", self.top_p, "above 0 and up to 1; 1 is off")
        _check(0 <= self.min_p <= 1, "min-p", self.min_p, "0 to 1; 0 is off")
        _check(0 < _single(self.repeat_penalty) < math.inf, "repeat-penalty", self.repeat_penalty, "above 0; 1 is off")
        _check(0 <= self.repeat_last_n <= 2**20, "repeat-last-n", self.repeat_last_n, "0 to 1048576 tokens")
        _check(
            abs(_single(self.presence_penalty)) < math.inf,
            "presence-penalty",
            self.presence_penalty,
            "a number; 0 is off",
        )
        _check(
            abs(_single(self.frequency_penalty)) < math.inf,
            "frequency-penalty",
            self.frequency_penalty,
            "a number; 0 is off",
        )
        _check(self.seed is None or 0 <= self.seed <= MAX_SEED, "seed", self.seed, f"0 to {MAX_SEED}")

    def open(self, text: _native.TextHandle) -> _native.SamplerHandle:
        """A native sampler, to be closed with `_native.sampler_close`. Raises UsageError for a grammar that is none."""
        if self.grammar:
            bounds.check(self.grammar)
        sampler = _native.sampler_open(self.params())
        try:
            if self.logit_bias or self.grammar or any(getattr(self, name) != off for name, off in _OFF.items()):
                _native.sampler_constrain(
                    sampler,
                    text,
                    bias=self.logit_bias,
                    grammar=self.grammar,
                    grammar_trigger=self.grammar_trigger,
                    dry_breakers=self.dry_breakers,
                    **{name: getattr(self, name) for name in _MORE},
                )
        except BaseException:
            _native.sampler_close(sampler)
            raise
        return sampler

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


@dataclass(frozen=True)
class Recommended:
    """How tokens are picked where nobody says otherwise: as the model's maker recommends in its file.

    values: fields of `Sampling`, llama.cpp's own where the file says nothing. given: those that the file says.
    """

    values: Mapping[str, Any]
    given: tuple[str, ...] = ()

    @classmethod
    def read(cls, model: _native.ModelHandle | None) -> Recommended:
        """What a GGUF file recommends; None: llama.cpp's own values."""
        values = _native.model_recommendation(model)
        bits = values.pop("given")
        given = tuple(name for i, name in enumerate(values) if bits >> i & 1)
        # The shortest number that is the same in single precision.
        plain = {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in values.items()}
        return cls({**plain, "seed": FIXED_SEED}, given)

    def but(self, **said: Any) -> Sampling:
        """The sampling with other values where something is said. Raises UsageError."""
        return Sampling(**{**self.values, **said})

    def line(self) -> str:
        """What is recommended, in a line: "temp 0.6, top_k 20 (the model's); top_p 0.95, min_p 0.05 (llama.cpp's)"."""
        groups = {"the model's": self.given, "llama.cpp's": [name for name in _TOLD if name not in self.given]}
        return "; ".join(
            ", ".join(f"{name} {self.values[name]}" for name in names) + f" ({whose})"
            for whose, names in groups.items()
            if names
        )


def _single(value: float) -> float:
    """The value as the sampler gets it, in single precision: what is too large is infinity, what is too small 0."""
    return array("f", [value])[0]


def _check(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise UsageError(f"`--{name} {value}` makes no sense", hint=f"give {allowed}")
