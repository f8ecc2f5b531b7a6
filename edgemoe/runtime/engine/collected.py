"""What an engine sums up while it computes text for calibration; who reads it knows the model's shapes."""

from __future__ import annotations

from array import array
from math import inf

from ... import _native
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

    def noise(self, layer: int, share: float, limit: float = inf) -> None:
        """LOSSY, for measuring: each output of the layer's experts gets +-share of its root mean square.

        Experts that gave anything above `limit` before get none.
        """
        _native.collect_noise(self._sequence.backend.engine, layer, share, limit)

    def no_noise(self) -> None:
        _native.collect_noise(self._sequence.backend.engine, NO_LAYER, 0.0, inf)
