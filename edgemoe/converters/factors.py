"""What compensated rounding needs of each expert, from activations that `edgemoe calibrate` kept.

A sample of a layer's inputs is its second moments in low rank. All experts of the layer share it: a matrix of moments
for each would not fit (128 experts in 48 layers of 2048 columns: 103 GB). What down meets is computed from it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from . import expert_error
from .calibration import Sample
from .compensate import Factor, factor_of, second_moments
from .ggml import Floats
from .source import Key, Source

_LEAN = 64  # usual uses that all tokens of a sample together count for: an expert that few met leans on its layer
_N_SOME = 256  # of them, for down: each must pass through the expert
_N_LAYER = 2  # whose samples are held: workers are in neighbouring layers at most


class Compensation:
    """Factors for the experts of a model from a calibration's samples, a few layers at a time; for many threads."""

    def __init__(self, source: Source, samples: Mapping[int, Sample]) -> None:
        self._source, self._samples = source, samples
        self._lock = threading.Lock()
        self._layers: dict[int, LayerFactors] = {}

    def factor(self, key: Key, expert: int) -> Factor | None:
        """None for what is no routed expert, or where too little is known."""
        number, family, role = key
        if family != "exps" or number not in self._samples:
            return None
        with self._lock:
            if number not in self._layers:
                self._layers[number] = LayerFactors(self._source, number, *self._samples[number].load())
                for old in list(self._layers)[:-_N_LAYER]:
                    del self._layers[old]
            layer = self._layers[number]
        return layer.factor(role, expert)


class LayerFactors:
    """Factors for one layer's experts. x: [n, n_in], inputs of a sample; w: [n, n_expert], what each expert counts."""

    def __init__(self, source: Source, number: int, x: Floats, w: Floats) -> None:
        experts = source.experts.items()
        self._stacks = {role: stack for (n, family, role), stack in experts if (n, family) == (number, "exps")}
        self._biases = expert_error.load_biases(source.dense, number, list(self._stacks))
        self._gated = expert_error.GATED[expert_error.activation_of(source.architecture)]
        self._x, self._w = x, w
        used = w[w > 0].astype(np.float64)
        self._lean = _LEAN * float(np.mean(used**2)) if len(used) else 0.0
        self._shared = second_moments(x, np.full(len(x), self._lean / max(1, len(x))))
        self._lock = threading.Lock()
        self._last: tuple[int, Factor | None] | None = None

    def factor(self, role: str, expert: int) -> Factor | None:
        if role == "down":
            return factor_of(self._hidden_moments(expert))
        with self._lock:  # gate and up meet the same
            if self._last is not None and self._last[0] == expert:
                return self._last[1]
        own = np.flatnonzero(self._w[:, expert])
        moments = second_moments(self._x[own], self._w[own, expert].astype(np.float64) ** 2)
        found = factor_of([mine + shared for mine, shared in zip(moments, self._shared, strict=True)])
        with self._lock:
            self._last = (expert, found)
        return found

    def _hidden_moments(self, expert: int) -> list[Floats]:
        """Of what the expert makes of its own tokens, and of some of all."""
        matrices = expert_error.load_expert(self._stacks, expert, self._biases)
        if matrices is None:
            return [np.zeros(0, np.float32)]
        own = np.flatnonzero(self._w[:, expert])
        some = np.linspace(0, len(self._x) - 1, min(len(self._x), _N_SOME)).astype(int)
        met = self._x[np.concatenate([own, some])]
        count = np.full(len(met), self._lean / max(1, len(some)))
        count[: len(own)] = self._w[own, expert].astype(np.float64) ** 2
        with np.errstate(over="ignore", invalid="ignore"):  # no factor is made of what is no number
            gate, up = met @ matrices.gate.T + matrices.gate_bias, met @ matrices.up.T + matrices.up_bias
            return second_moments(self._gated(gate, up), count)
