"""llama.cpp and the streamer behind `Backend`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ... import _native
from ..engine import rates
from ..model import ModelInfo


class NativeBackend:
    """See `Backend` and `Sequences`. handle: the backend's from now on.

    compare: told the native statistics of the whole run.
    """

    def __init__(self, handle: _native.EngineHandle, compare: Callable[[Mapping[str, Any]], None]) -> None:
        self.engine = handle
        self._compare = compare
        self.text = _native.engine_text(handle)
        self.n_vocab = _native.text_n_vocab(self.text)
        self.n_ctx = _native.engine_n_ctx(handle)

    @property
    def n_past(self) -> int:
        return _native.engine_n_past(self.engine)

    def select(self, sequence: int) -> None:
        _native.engine_select(self.engine, sequence)

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> None:
        _native.engine_step(self.engine, sequences, tokens)

    def text_of(self, sequence: int) -> _native.TextHandle:
        return _native.engine_sequence_text(self.engine, sequence)

    def decode(self, tokens: Sequence[int], *, want_all: bool) -> None:
        _native.engine_decode(self.engine, tokens, want_all=want_all)

    def verify(self, tokens: Sequence[int]) -> None:
        _native.engine_verify(self.engine, tokens)

    def check_verify(self) -> None:
        _native.engine_can_verify(self.engine)

    def row(self, i: int) -> array[float]:
        return _native.text_logits(self.text, i, self.n_vocab)

    def rewind(self, n: int) -> None:
        _native.engine_rewind(self.engine, n)

    def can_cut(self) -> bool:
        return _native.engine_can_cut(self.engine)

    def state_key(self) -> int:
        return _native.engine_state_key(self.engine)

    def state_bytes(self) -> int:
        return _native.engine_state_bytes(self.engine)

    def state(self, n_bytes: int) -> bytearray:
        return _native.engine_state(self.engine, n_bytes)

    def set_state(self, state: bytearray) -> None:
        _native.engine_set_state(self.engine, state)

    def checkpoint_bytes(self) -> int:
        return _native.engine_checkpoint_bytes(self.engine)

    def checkpoint(self, n_bytes: int) -> bytearray:
        return _native.engine_checkpoint(self.engine, n_bytes)

    def set_checkpoint(self, state: bytearray) -> None:
        _native.engine_set_checkpoint(self.engine, state)

    def cancel(self) -> None:
        _native.engine_cancel(self.engine)

    def set_cache_bytes(self, cache_bytes: int) -> None:
        _native.engine_set_cache_bytes(self.engine, cache_bytes)

    def stats(self) -> dict[str, Any]:
        return _native.engine_stats(self.engine)

    def resident(self, layer: int) -> int:
        return _native.engine_resident(self.engine, layer)

    def experts(self, layer: int) -> bytes:
        return _native.engine_experts(self.engine, layer)

    def accuracy(self, layer: int) -> tuple[list[int], list[int]]:
        return _native.engine_accuracy(self.engine, layer)

    def trace(self, path: str | None, header: str) -> None:
        _native.engine_trace(self.engine, path, header)

    def recall(self, info: ModelInfo) -> None:
        known = rates.recall(info)
        if known is not None:
            _native.engine_warm_start(self.engine, known)

    def remember(self, info: ModelInfo) -> None:
        stats = self.stats()
        rates.remember(info, stats["n_decode"] + stats["n_prefill"], _native.engine_rates(self.engine))
        rates.remember_hits(info, stats)
        self._compare(stats)

    def close(self) -> None:
        _native.engine_close(self.engine)
