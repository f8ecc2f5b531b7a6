"""What computes a sequence of tokens: the one thing that `Engine` and `TokenSequence` ask for, however it is done.

`gguf.backend.NativeBackend` is llama.cpp with our streamer; `onnx.backend.OnnxBackend` is ONNX Runtime.
Text, sampling, budget, chat and the counting of tokens are above it and know neither.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ... import _native

if TYPE_CHECKING:
    from ..model import ModelInfo


class Backend(Protocol):
    """One sequence of tokens, and an expert cache of a size that is told. Sizes are bytes.

    text: vocabulary, and the logits of the last `decode` for samplers.
    """

    @property
    def text(self) -> _native.TextHandle: ...
    @property
    def engine(self) -> _native.EngineHandle:
        """For what only our own engine does: calibration, injected faults. Raises UnsupportedError."""

    @property
    def n_vocab(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_past(self) -> int:
        """Tokens in the sequence. After a failed `decode` it is as before, or less."""

    def decode(self, tokens: Sequence[int], *, want_all: bool) -> None:
        """Compute tokens after those there. Raises UsageError, ContextFullError, StorageError, Cancelled."""

    def verify(self, tokens: Sequence[int]) -> None:
        """Compute at most MAX_VERIFY tokens, keeping the logits of all, each rounded as if decoded alone."""

    def check_verify(self) -> None:
        """Raises UnsupportedError, saying why, where `verify` cannot be."""

    def row(self, i: int) -> array[float]:
        """A copy of row i of the logits, float32 [n_vocab]. Raises UsageError when there is no such row."""

    def rewind(self, n: int) -> None:
        """Cut the sequence to n tokens. Raises UnsupportedError where that cannot be."""

    def can_cut(self) -> bool:
        """Whether a sequence that `set_state` made can be cut at any token, and not only to 0."""

    def state_key(self) -> int:
        """What a state belongs to: model, setup and library."""

    def state_bytes(self) -> int:
        """Of the sequence's state; 0 where it cannot be kept."""

    def state(self, n_bytes: int) -> bytearray:
        """The sequence's state, of `state_bytes`."""

    def set_state(self, state: bytearray) -> None:
        """Make the sequence what it was when this was its state. Raises NativeError; it is empty then."""

    def checkpoint_bytes(self) -> int:
        """Of what cannot be cut of the sequence's state; 0 where all can be."""

    def checkpoint(self, n_bytes: int) -> bytearray:
        """What the sequence can be cut to where it is now, of `checkpoint_bytes`."""

    def set_checkpoint(self, state: bytearray) -> None:
        """Cut the sequence to where this was its checkpoint: it begins with those tokens still. As `set_state`."""

    def cancel(self) -> None:
        """End what is being computed soon, with Cancelled. Any thread, as all below."""

    def set_cache_bytes(self, cache_bytes: int) -> None: ...
    def stats(self) -> dict[str, Any]:
        """The fields of `emoe_stats`."""

    def resident(self, layer: int) -> int:
        """Experts of a layer in the cache."""

    def experts(self, layer: int) -> bytes:
        """One byte of EXPERT_* bits an expert."""

    def accuracy(self, layer: int) -> tuple[list[int], list[int]]:
        """(experts used, of them predicted) by layers looked ahead."""

    def trace(self, path: str | None, header: str) -> None:
        """Begin to record into a file, or end it. Raises UnsupportedError where nothing can be recorded."""

    def recall(self, info: ModelInfo) -> None:
        """Begin with what earlier runs learned about the experts."""

    def remember(self, info: ModelInfo) -> None:
        """Keep what this run learned."""

    def close(self) -> None: ...
