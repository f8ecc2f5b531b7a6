"""A text decoded token by token, as an answer is: where `--lossy` works, with what it reads and how long it takes.

The exact engine that it is compared with decodes as well: a batch rounds differently, which alone is a distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .windows import F32, Windows, log_softmax

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine
    from ..runtime.engine.stats import Stats


@dataclass(frozen=True)
class Decoding:
    """Of the scored tokens of all windows; what came before them has filled the cache.

    n_slot: experts that the cache held at the end. skipped: share of expert uses that were left out. spent_nats: at the
    end, by the calibration.
    """

    n_token: int
    n_slot: int
    tok_s: float
    read_bytes: float
    hit_rate: float
    skipped: float
    spent_nats: float

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class Decoder:
    """Windows of one engine, one token at a time."""

    def __init__(self, engine: Engine, windows: Windows) -> None:
        self._engine, self._windows = engine, windows
        self._parts: list[Stats] = []

    def rows(self, i: int) -> Iterator[F32]:
        """For each scored token of window i, the log-probabilities of the whole vocabulary in its place."""
        engine, windows = self._engine, self._windows
        tokens = windows.computed(i)
        engine.reset()
        for token in tokens[: windows.n_given]:
            engine.eval([token])
        before = engine.stats()
        for token in tokens[windows.n_given :]:
            engine.eval([token])
            yield log_softmax(np.frombuffer(engine.row(), dtype=np.float32))
        self._parts.append(engine.stats().since(before))

    def found(self) -> Decoding:
        """Of the windows that were read to their end."""
        total = {
            name: sum(getattr(part, name) for part in self._parts)
            for name in ("n_decode", "decode_ns", "read_bytes", "n_hit", "n_miss", "n_skip")
        }
        uses = total["n_hit"] + total["n_miss"]
        return Decoding(
            n_token=total["n_decode"],
            n_slot=self._parts[-1].n_slot,
            tok_s=total["n_decode"] * 1e9 / total["decode_ns"],
            read_bytes=total["read_bytes"] / total["n_decode"],
            hit_rate=total["n_hit"] / max(1, uses),
            skipped=total["n_skip"] / max(1, uses + total["n_skip"]),
            spent_nats=self._parts[-1].spent_nats,
        )
