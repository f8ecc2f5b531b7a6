"""What an export takes beside its experts: counted from its shapes, and corrected by what earlier loads measured."""

from __future__ import annotations

from collections.abc import Mapping

from ...paths import read_cached, write_cached
from ...units import KIB, MIB
from ..model import ContextSizes
from .model import OnnxModel

DECODE_TOKENS = 8  # batches up to this need no more than decode does
_SESSION_BYTES = 400 * KIB  # two of them a layer
_FIRST_BYTES = 24 * MIB  # what ONNX Runtime and the tokenizer take once


def work_bytes(shape: Mapping[str, int], n_token: int, n_ctx: int) -> int:
    """The buffers of a batch: ours, and what ONNX Runtime's kernels take for the layer that they compute."""
    wide = shape["n_head"] * shape["head_dim"]
    floats = 12 * shape["n_embd"] + 8 * wide + 6 * shape["n_expert"] + 6 * shape["n_expert_used"] * shape["n_ff"]
    floats += shape["n_expert_used"] * shape["n_embd"] + shape["n_head"] * n_ctx
    return 4 * n_token * floats


class ExportSizes:
    """Called with (n_ctx, n_ubatch) it gives ContextSizes."""

    def __init__(self, model: OnnxModel, *, n_threads: int, n_outputs: int) -> None:
        self._model, self._n_outputs = model, n_outputs
        self._name = notes_name(model)
        self._known = read_cached(self._name).get(f"fixed {n_threads}")

    def __call__(self, n_ctx: int, n_ubatch: int) -> ContextSizes:
        s = self._model.shape
        decode, whole = (work_bytes(s, n, n_ctx) for n in (DECODE_TOKENS, max(n_ubatch, DECODE_TOKENS)))
        return ContextSizes(
            kv_bytes=2 * 4 * s["n_layer"] * n_ctx * s["n_head_kv"] * s["head_dim"],
            compute_bytes=whole,
            output_bytes=2 * self._n_outputs * s["n_vocab"] * 4,
            scratch_bytes=0,
            vocab_bytes=self._overhead(),
            decode_bytes=decode,
            prefill_bytes=whole - decode,
        )

    def _overhead(self) -> int:
        """What the process takes beyond the dense weights' file size."""
        if isinstance(self._known, int) and 0 <= self._known < 1 << 40:
            return self._known
        sessions = 2 * self._model.shape["n_layer"] * _SESSION_BYTES
        vocabulary = 12 * self._model.vocabulary.stat().st_size
        return _FIRST_BYTES + sessions + vocabulary + self._model.dense_file_bytes // 8


def note_overhead(model: OnnxModel, n_threads: int, n_bytes: int) -> None:
    """What a load measured, for the next plan: the most that was ever seen."""
    name, key = notes_name(model), f"fixed {n_threads}"
    notes = read_cached(name)
    known = notes.get(key)
    if not isinstance(known, int) or n_bytes > known:
        write_cached(name, {**notes, key: n_bytes})


def notes_name(model: OnnxModel) -> str:
    """Of the JSON object in the cache folder that belongs to an export."""
    return f"onnx/{model.info.identity:016x}.json"
