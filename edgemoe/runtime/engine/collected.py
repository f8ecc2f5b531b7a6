"""What an engine sums up while it computes text for calibration; who reads it knows the model's shapes."""

from __future__ import annotations

from array import array

from ... import _native
from ..._abi import COLLECT_STATE
from .sequence import TokenSequence

NO_LAYER = 0xFFFFFFFF


class Collected:
    """Valid inside `Engine.collecting`. Layers are numbered as in `model.layers`; kinds are COLLECT_* of `_abi`."""

    def __init__(self, sequence: TokenSequence, n_sample: int) -> None:
        self._sequence = sequence
        self.n_sample = n_sample

    def read(self, layer: int, kind: int, n: int) -> array[float]:
        """A copy of n float32. Raises UsageError when there are more or fewer."""
        return _native.collect_read(self._sequence.backend.engine, layer, kind, n)

    def sees(self, layer: int) -> tuple[bool, bool]:
        """Whether the layer's graph shows what the router gives its experts, and the residual stream they add to."""
        state = self.read(layer, COLLECT_STATE, 5)
        return bool(state[3]), bool(state[4])

    def noise(self, layer: int, share: float, spared: bytes = b"") -> None:
        """LOSSY, for measuring: each output of the layer's experts gets +-share of its root mean square.

        spared: a byte an expert, 1: it gets none.
        """
        _native.collect_noise(self._sequence.backend.engine, layer, share, spared)

    def no_noise(self) -> None:
        _native.collect_noise(self._sequence.backend.engine, NO_LAYER, 0.0, b"")

    def skip(self, cost: array[float], missing: bytes, limit: float) -> None:
        """LOSSY, for measuring: uses of the experts that `missing` marks are left out when they cost less than limit.

        cost, missing: of each expert, all layers in turn.
        """
        _native.collect_skip(self._sequence.backend.engine, cost, missing, limit)

    def skipped(self) -> float:
        """Sum of the costs of what was left out since `skip`."""
        return _native.collect_skipped(self._sequence.backend.engine)

    def no_skip(self) -> None:
        _native.collect_skip(self._sequence.backend.engine, array("f"), b"", 0.0)
