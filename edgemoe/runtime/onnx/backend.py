"""ONNX Runtime as a backend: an export run part by part, the experts of each layer made resident before it runs.

A layer is two sessions, attention with the router and the experts; between them the router's weights say which experts
the batch uses. All buffers are ours and bound once for single tokens. The KV cache is one buffer a layer that ONNX
Runtime reads and writes in place, so that cutting the sequence is only counting less.
"""

from __future__ import annotations

import json
import os
import threading
import time
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import _native
from ...errors import Cancelled, ContextFullError, NativeError, UnsupportedError, UsageError
from ..engine import rates
from .model import OnnxModel
from .prepare import ANGLES, PREPARED, session_options, stage
from .residency import MAPPING, Mapping, Residency, opened
from .sizes import DECODE_TOKENS, work_bytes

if TYPE_CHECKING:
    from ..model import ModelInfo

_NO_DEPTH = 4  # layers ahead for which `accuracy` has a place


class _Bound:
    """The buffers of a batch of n tokens, and the sessions' bindings to them."""

    def __init__(self, backend: OnnxBackend, n: int) -> None:
        import numpy as np

        s = backend.shape
        self.ids = np.zeros((1, n), np.int64)
        self.seqlens, self.total = np.zeros(1, np.int32), np.zeros((), np.int32)
        self.middle = [np.empty((1, n, s["n_embd"]), np.float32) for _ in range(2)]
        self.x, self.moe = (np.empty((n, s["n_embd"]), np.float32) for _ in range(2))
        self.weights = np.empty((n, s["n_expert"]), np.float32)
        self.dense: list[Any] = []
        self.experts: list[Any] = []
        for layer in range(s["n_layer"]):
            p, before = f"model.layers.{layer}", f"model.layers.{layer - 1}"
            dense = backend.dense[layer].io_binding()
            if layer == 0:
                _bind(dense.bind_input, "input_ids", self.ids)
            else:
                _bind(dense.bind_input, f"{before}.middle", self.middle[(layer - 1) % 2])
                _bind(dense.bind_input, f"{before}.moe.out", self.moe.reshape(1, n, -1))
            _bind(dense.bind_input, "seqlens_k", self.seqlens)
            _bind(dense.bind_input, "total_seq_len", self.total)
            for name, angles in zip(ANGLES, backend.angles, strict=True):
                _bind(dense.bind_input, name, angles)
            for part, cache in zip(("key", "value"), backend.kv[layer], strict=True):
                _bind(dense.bind_input, f"past_key_values.{layer}.{part}", cache)
                _bind(dense.bind_output, f"present.{layer}.{part}", cache)
            _bind(dense.bind_output, f"{p}.middle", self.middle[layer % 2])
            _bind(dense.bind_output, f"{p}.moe.x", self.x)
            _bind(dense.bind_output, f"{p}.moe.weights", self.weights)
            experts = backend.experts_sessions[layer].io_binding()
            _bind(experts.bind_input, f"{p}.moe.x", self.x)
            _bind(experts.bind_input, f"{p}.moe.weights", self.weights)
            _bind(experts.bind_output, f"{p}.moe.sum", self.moe)
            self.dense.append(dense)
            self.experts.append(experts)


def _bind(bind: Any, name: str, values: Any) -> None:
    bind(name, "cpu", 0, values.dtype.type, list(values.shape), values.ctypes.data)


class OnnxBackend:
    """See `backend.Backend`. parts: the folder that `prepare` wrote."""

    def __init__(
        self, model: OnnxModel, parts: Path, *, n_ctx: int, n_ubatch: int, n_threads: int, n_outputs: int, policy: int
    ) -> None:
        import numpy as np
        import onnxruntime as ort

        self._np, self._ort = np, ort
        self._model, self.shape = model, model.shape
        self.n_ctx, self.n_vocab = n_ctx, model.shape["n_vocab"]
        self._n_ubatch, self._n_outputs, self._n_threads = n_ubatch, n_outputs, n_threads
        self._n_past = self._n_row = 0
        self._cancelled = False
        self._counts = dict.fromkeys(("n_decode", "n_prefill", "decode_ns", "prefill_ns"), 0)
        self._cache_bytes = 0
        self._lent = 0
        self._budget_lock = threading.Lock()
        s = self.shape
        shape = (1, s["n_head_kv"], n_ctx, s["head_dim"])
        # Written now: the budget counts them from the start.
        self.kv = [[np.full(shape, 0, np.float32) for _ in range(2)] for _ in range(s["n_layer"])]
        half = s["head_dim"] // 2
        self.angles = [np.fromfile(parts / name, np.float32, n_ctx * half).reshape(n_ctx, half) for name in ANGLES]
        self._logits = np.zeros((1, self.n_vocab), np.float32)
        self.residency = Residency([s["n_expert"]] * s["n_layer"], s["n_expert_used"], policy)
        prepared = json.loads((parts / PREPARED).read_text("utf-8"))
        self.dense: list[Any] = []
        self.experts_sessions: list[Any] = []
        self._dense_maps: list[Mapping] = []
        self._head = self._open_dense(parts / stage("head", 0))  # the largest, while little else is there
        for layer in range(s["n_layer"]):
            self.dense.append(self._open_dense(parts / stage("dense", layer)))
            path, file = parts / stage("experts", layer), parts / f"experts-{layer:05d}.data"
            session, found = opened(file, partial(self._session, os.fspath(path)))
            self.experts_sessions.append(session)
            self.residency.add_layer(layer, file, found, prepared["layers"][layer])
            _native.trim_heap()
        self.text = _native.text_open(os.fspath(model.vocabulary))
        _native.trim_heap()
        self.residency.set_limit(self.residency.least_bytes)
        self._one: _Bound | None = None
        self._warm_up()

    # ------------------------------------------------------------------ opening

    def _session(self, model: str | bytes, *, folder: Path | None = None) -> Any:
        options = session_options(self._ort, self._n_threads)
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", os.fspath(folder.resolve())
            )
        try:
            return self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _failed("open the model", error) from None

    def _open_dense(self, path: Path) -> Any:
        session, found = opened(
            self._model.path / "model.onnx.data", partial(self._session, path.read_bytes(), folder=self._model.path)
        )
        self._dense_maps += found
        self._drop_dense()
        return session

    def _drop_dense(self) -> None:
        """Pages of the dense weights: packed on the heap, and each token's row of the embedding would stay."""
        for _, size, address in self._dense_maps:
            _native.map_drop(address, size)

    def _warm_up(self) -> None:
        """One token and a few, so that the budget is divided when what computing touches has been touched."""
        self.decode([0], want_all=False)
        self._n_past = 0
        self._counts = dict.fromkeys(self._counts, 0)
        r = self.residency
        r.n_hit = r.n_miss = r.n_evict = r.n_read = r.read_bytes = r.stall_ns = 0

    # ------------------------------------------------------------------ computing

    @property
    def engine(self) -> _native.EngineHandle:
        raise UnsupportedError("ONNX Runtime computes this model: that works on GGUF files alone")

    @property
    def n_past(self) -> int:
        return self._n_past

    def decode(self, tokens: Sequence[int], *, want_all: bool) -> None:
        n, begin = len(tokens), self._n_past
        if n == 0:
            raise UsageError("no tokens to compute")
        if want_all and (n > self._n_outputs or n > self._n_ubatch):
            raise UsageError(
                f"logits of {n} tokens were asked for, but the engine was opened for "
                f"{min(self._n_outputs, self._n_ubatch)} at a time"
            )
        if n > self.n_ctx - begin:
            raise ContextFullError(
                f"{n} tokens do not fit: the context holds {self.n_ctx} and has {begin}",
            )
        self._cancelled = False
        began = time.monotonic_ns()
        self._lend(max(0, work_bytes(self.shape, min(n, self._n_ubatch), self.n_ctx) - self._decode_bytes))
        try:
            for at in range(0, n, self._n_ubatch):
                piece = tokens[at : at + self._n_ubatch]
                self._batch(piece, want_all=want_all, want_last=at + len(piece) == n)
        except BaseException:
            self._n_past = begin
            raise
        finally:
            self._lend(0)
        spent = time.monotonic_ns() - began
        kind = "decode" if n == 1 else "prefill"
        self._counts[f"n_{kind}"] += n
        self._counts[f"{kind}_ns"] += spent

    def _batch(self, tokens: Sequence[int], *, want_all: bool, want_last: bool) -> None:
        n = len(tokens)
        if n == 1:
            if self._one is None:
                self._one = _Bound(self, 1)
            b = self._one
        else:
            b = _Bound(self, n)
        b.ids[0] = tokens
        b.seqlens[0], b.total[()] = self._n_past + n - 1, self._n_past + n
        try:
            for layer in range(self.shape["n_layer"]):
                if self._cancelled:
                    raise Cancelled("cancelled")
                self.dense[layer].run_with_iobinding(b.dense[layer])
                self._visit(layer, b.weights)
                self.experts_sessions[layer].run_with_iobinding(b.experts[layer])
            if want_last:
                self._compute_logits(b, n if want_all else 1)
        except (Cancelled, NativeError):
            raise
        except Exception as error:
            raise _failed("compute", error) from None
        self._n_past += n
        self._drop_dense()

    def _visit(self, layer: int, weights: Any) -> None:
        used = (weights != 0).sum(0, dtype=self._np.uint32)
        experts = self._np.flatnonzero(used).astype(self._np.uint32)
        rows = used[experts]
        mean = (weights[:, experts].sum(0) / rows).astype(self._np.float32)
        self.residency.visit(
            layer, len(weights), array("I", experts.tobytes()), array("I", rows.tobytes()), array("f", mean.tobytes())
        )

    def _compute_logits(self, b: _Bound, n_row: int) -> None:
        last = self.shape["n_layer"] - 1
        feed = {
            f"model.layers.{last}.middle": b.middle[last % 2][:, -n_row:],
            f"model.layers.{last}.moe.out": b.moe.reshape(1, len(b.moe), -1)[:, -n_row:],
        }
        (logits,) = self._head.run(["logits"], feed)
        self._logits = self._np.ascontiguousarray(logits[0])
        _native.text_set_logits(self.text, self._logits.ctypes.data, n_row)
        self._n_row = n_row

    def verify(self, tokens: Sequence[int]) -> None:
        self.check_verify()

    def check_verify(self) -> None:
        raise UnsupportedError("ONNX Runtime rounds several tokens otherwise than one: it cannot verify drafts")

    def row(self, i: int) -> array[float]:
        if not 0 <= i < self._n_row:
            raise UsageError(f"the last evaluation kept no logits in row {i}")
        values = array("f")
        values.frombytes(self._logits[i].tobytes())
        return values

    def rewind(self, n: int) -> None:
        if n > self._n_past:
            raise UsageError(f"cannot rewind to {n} tokens: there are {self._n_past}")
        if n < self._n_past:
            self._n_past, self._n_row = n, 0
            _native.text_set_logits(self.text, self._logits.ctypes.data, 0)

    def can_cut(self) -> bool:
        return True

    def state_key(self) -> int:
        return 0

    def state_bytes(self) -> int:
        return 0

    def state(self, n_bytes: int) -> bytearray:
        raise UnsupportedError("the state of an export cannot be kept")

    def set_state(self, state: bytearray) -> None:
        raise UnsupportedError("the state of an export cannot be kept")

    def checkpoint_bytes(self) -> int:
        return 0

    def checkpoint(self, n_bytes: int) -> bytearray:
        raise UnsupportedError("an export needs no checkpoints")

    def set_checkpoint(self, state: bytearray) -> None:
        raise UnsupportedError("an export needs no checkpoints")

    def cancel(self) -> None:
        self._cancelled = True

    # ------------------------------------------------------------------ budget and state

    @property
    def _decode_bytes(self) -> int:
        return work_bytes(self.shape, DECODE_TOKENS, self.n_ctx)

    def set_cache_bytes(self, cache_bytes: int) -> None:
        with self._budget_lock:
            self._cache_bytes = cache_bytes
            self.residency.set_limit(max(self.residency.least_bytes, cache_bytes - self._lent))

    def _lend(self, n_bytes: int) -> None:
        """Cache bytes for the work of a large batch, 0: all back."""
        with self._budget_lock:
            if n_bytes == self._lent:
                return
            if n_bytes < self._lent:
                _native.trim_heap()
            self._lent = n_bytes
            self.residency.set_limit(max(self.residency.least_bytes, self._cache_bytes - n_bytes))

    def stats(self) -> dict[str, Any]:
        r, work = self.residency, work_bytes(self.shape, self._n_ubatch, self.n_ctx)
        kv_bytes = sum(cache.nbytes for pair in self.kv for cache in pair)
        output_bytes = self._n_outputs * self.n_vocab * 4
        zeros = (
            "n_streamed", "n_late", "n_prefetch", "n_prefetch_used", "prefetch_bytes", "drive_ns", "prefetch_paused",
            "prefetch_depth", "with_ns", "without_ns", "scratch_bytes", "n_gpu", "gpu_bytes", "direct_io", "page_cache",
            "row_cache_bytes", "n_row_hit", "n_row_miss", "row_read_bytes", "n_skip", "skip_bytes", "lossy_nats",
            "spent_nats",
        )  # fmt: skip
        return {
            **dict.fromkeys(zeros, 0),
            **self._counts,
            "n_slot": r.n_slot,
            "n_slot_used": r.n_resident,
            "reader": 1,
            "n_hit": r.n_hit,
            "n_miss": r.n_miss,
            "n_evict": r.n_evict,
            "n_read": r.n_read,
            "read_bytes": r.read_bytes,
            "stall_ns": r.stall_ns,
            "cache_bytes": self._cache_bytes,
            "dense_bytes": self._model.info.dense_bytes,
            "kv_bytes": kv_bytes,
            "compute_bytes": work,
            "output_bytes": output_bytes,
            "decode_bytes": self._decode_bytes,
            "prefill_bytes": max(0, work - self._decode_bytes),
            "untouched_bytes": self._decode_bytes + output_bytes,
            "prefetch_threshold": 0.0,
        }

    def resident(self, layer: int) -> int:
        return self.residency.resident(layer)

    def experts(self, layer: int) -> bytes:
        return self.residency.states(layer)

    def accuracy(self, layer: int) -> tuple[list[int], list[int]]:
        return [0] * _NO_DEPTH, [0] * _NO_DEPTH

    def trace(self, path: str | None, header: str) -> None:
        if path is not None:
            raise UnsupportedError("traces are not recorded of ONNX exports", hint="trace the GGUF file")

    def recall(self, info: ModelInfo) -> None:
        known = rates.recall(info)
        if known is not None:
            self.residency.warm_start(known)

    def remember(self, info: ModelInfo) -> None:
        rates.remember(info, self._counts["n_decode"] + self._counts["n_prefill"], self.residency.rates())

    def close(self) -> None:
        with MAPPING:
            self._one = None
            self.dense.clear()
            self.experts_sessions.clear()
            self._head = None
        self.residency.close()
        _native.text_close(self.text)
        self.kv.clear()
        _native.trim_heap()


def _failed(what: str, error: Exception) -> NativeError:
    return NativeError(f"ONNX Runtime cannot {what}: {str(error).splitlines()[0][:200]}")
