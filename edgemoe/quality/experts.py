"""What experts meet and give while a text is computed, and how much an error in each layer's experts matters.

Sums are kept per layer in plain arrays, so that a run can stop after any window and be added to later.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import _abi as abi
from ..converters.allocate import outlier_limit
from ..converters.ggml import Bytes, quantize
from .windows import F32, F64, N_OUTPUTS, Windows, divergence, log_probabilities

if TYPE_CHECKING:
    from ..runtime.engine.collected import Collected
    from ..runtime.engine.engine import Engine

FIELDS = ("tokens", "weight", "weight2", "output2", "largest")
"""Of `LayerSums.experts`: see EMOE_COLLECT_EXPERTS in edgemoe.h."""
NOISE = 0.7
"""Share of its size that is added to an expert's output. Small shares drown in what any rounding does to the model (a
divergence of 0.01 where routing is sharp); with large ones the divergence is no longer in proportion."""
_FLOOR_NOISE = 1e-4


@dataclass(frozen=True)
class Shape:
    """Of the experts of one layer: their number, and the lengths of what they meet, hold and give."""

    n_expert: int
    n_in: int
    n_hidden: int
    n_out: int


@dataclass
class LayerSums:
    """experts: [n_expert, FIELDS]. moments_in, moments_hidden: importance of each column of up and gate, and of down.
    output: sum of outputs. x, w: inputs of sampled tokens, in BF16 as bytes, and what each expert counts for them.
    """

    experts: F64
    moments_in: F64
    moments_hidden: F64
    output: F64
    x: Bytes
    w: F32
    n_seen: int = 0

    def add(self, more: LayerSums) -> None:
        largest = np.maximum(self.experts[:, -1], more.experts[:, -1])
        self.experts += more.experts
        self.experts[:, -1] = largest
        self.moments_in += more.moments_in
        self.moments_hidden += more.moments_hidden
        self.output += more.output
        self.x = np.concatenate([self.x, more.x])
        self.w = np.concatenate([self.w, more.w])
        self.n_seen += more.n_seen


def read_sums(collected: Collected, shapes: list[Shape]) -> list[LayerSums]:
    """Everything collected so far."""

    def read(layer: int, kind: int, *shape: int) -> F32:
        return np.frombuffer(collected.read(layer, kind, int(np.prod(shape))), np.float32).reshape(shape)

    found = []
    for i, s in enumerate(shapes):
        n_sample, n_seen = read(i, abi.COLLECT_STATE, 5)[:2]
        kept = slice(0, int(n_sample))
        found.append(
            LayerSums(
                read(i, abi.COLLECT_EXPERTS, s.n_expert, len(FIELDS)).astype(np.float64),
                read(i, abi.COLLECT_IN, s.n_expert, s.n_in).astype(np.float64),
                read(i, abi.COLLECT_HIDDEN, s.n_expert, s.n_hidden).astype(np.float64),
                read(i, abi.COLLECT_OUTPUT, s.n_expert, s.n_out).astype(np.float64),
                quantize(read(i, abi.COLLECT_SAMPLE_X, collected.n_sample, s.n_in)[kept], "BF16"),
                read(i, abi.COLLECT_SAMPLE_W, collected.n_sample, s.n_expert)[kept].copy(),
                int(n_seen),
            )
        )
    return found


def compute_window(engine: Engine, windows: Windows, i: int) -> None:
    """All tokens of a window, with all logits: llama.cpp takes tokens without through all layers but the last."""
    tokens = list(windows.window(i))
    if windows.bos >= 0:
        tokens[0] = windows.bos
    engine.reset()
    piece = min(N_OUTPUTS, engine.plan.n_ubatch)
    for begin in range(0, len(tokens), piece):
        engine.eval(tokens[begin : begin + piece], want_all=True)


def spared_of(sums: Sequence[LayerSums]) -> list[bytes]:
    """By layer, a byte an expert: 1 for those with outliers over the whole text (`outlier_limit`).

    They get no noise: rare outliers hold a model together, and would hide what the others matter.
    """
    limit = outlier_limit(np.concatenate([layer.experts[:, FIELDS.index("largest")] for layer in sums]))
    return [(layer.experts[:, FIELDS.index("largest")] > limit).astype(np.uint8).tobytes() for layer in sums]


@dataclass
class Sensitivity:
    """How much errors matter: by layer, divergence in nats a token for a unit of w^2 |error|^2 a token.

    floor: by layer, divergence that the smallest change at all makes; measured in some, between them a straight line.
    """

    by_layer: dict[int, float] = field(default_factory=dict)
    floor: dict[int, float] = field(default_factory=dict)


class Probe:
    """Measures sensitivities on a few windows; the clean model's probabilities wait in a file without a name."""

    def __init__(self, engine: Engine, windows: Windows, folder: Path, on_window: Callable[[int], None]) -> None:
        self._engine, self._windows = engine, windows
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `close`)
        try:
            for i in range(len(windows)):
                for row in log_probabilities(engine, windows, i):
                    self._file.write(row.tobytes())
                on_window(i)
        except BaseException:
            self._file.close()
            raise

    @property
    def n_token(self) -> int:
        """Tokens computed for one `divergence`."""
        return len(self._windows) * (self._windows.n_ctx - 1)

    def divergence(self) -> float:
        """Mean over the windows' tokens, of the clean model to the engine as it is now."""
        self._file.seek(0)
        values = [
            divergence(clean, row)
            for i in range(len(self._windows))
            for clean, row in zip(self._clean(), log_probabilities(self._engine, self._windows, i), strict=False)
        ]
        return float(np.mean(values))

    def _clean(self) -> Iterator[F32]:
        for _ in range(self._windows.n_scored):
            yield np.frombuffer(self._file.read(4 * self._engine.n_vocab), np.float32)

    def layer(self, collected: Collected, layer: int, share: float, spared: bytes) -> tuple[float, float]:
        """Divergence with noise in a layer, and the noise's mean w^2 |noise|^2 a token. spared: see `spared_of`."""
        collected.noise(layer, share, spared)
        try:
            found = self.divergence()
            noise2 = collected.read(layer, abi.COLLECT_STATE, 5)[2]
        finally:
            collected.no_noise()
        return found, noise2 / len(self._windows.tokens)

    def close(self) -> None:
        self._file.close()


def floor_layers(n_layer: int) -> list[int]:
    """Where the floor is measured; at the end there is none."""
    return sorted({0, n_layer // 3, 2 * n_layer // 3})


def floor_at(floor: dict[int, float], layer: int, n_layer: int) -> float:
    known = sorted(floor)
    return float(np.interp(layer, [*known, n_layer], [*(floor[i] for i in known), 0.0]))


def measure_floor(probe: Probe, collected: Collected, layer: int, spared: bytes) -> float:
    return probe.layer(collected, layer, _FLOOR_NOISE, spared)[0]


def measure_sensitivity(probe: Probe, collected: Collected, layer: int, floor: float, spared: bytes) -> float:
    """Never 0: of a layer that hardly matters some fraction of the floor is taken."""
    found, noise2 = probe.layer(collected, layer, NOISE, spared)
    return max(found - floor, 0.1 * found) / noise2 if noise2 > 0 else 0.0
