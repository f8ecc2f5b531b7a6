"""The two engines that a benchmark compares, behind the verbs that one repetition needs.

Imports little: what this module loads counts against the memory limit that the measurement runs under.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from .. import _native
from ..errors import EdgeMoEError, UnsupportedError
from ..runtime.setup import Setup


@dataclass(frozen=True)
class Setting:
    """How an engine is opened. setup: with memory in bytes, ctx and threads; llama.cpp heeds ctx, threads and n_ubatch
    (None: 512)."""

    path: str
    setup: Setup

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Setting:
        """The inverse of `to_dict`."""
        return Setting(value["path"], Setup(**value["setup"]))


class BenchEngine(Protocol):
    """One open model with one sequence of tokens."""

    def tokenize(self, text: str) -> list[int]: ...

    def append(self, tokens: Sequence[int]) -> None:
        """Compute tokens after those already in the sequence; returns when the last one's logits are there."""

    def clear(self) -> None:
        """Empty the sequence. Caches of weights stay."""

    def counters(self) -> dict[str, int]:
        """Totals since the engine was opened."""

    def facts(self) -> dict[str, Any]:
        """What the engine settled on."""

    def trace(self, path: str | None) -> None:
        """Begin to record into a file; None: end."""


class EdgeMoE:
    """This library, through its Python engine."""

    def __init__(self, setting: Setting) -> None:
        import edgemoe

        # Not warm: a repetition begins where the first one did.
        self._engine = edgemoe.load(setting.path, setting.setup.but(warm_start=False))

    def tokenize(self, text: str) -> list[int]:
        return self._engine.tokenize(text)

    def append(self, tokens: Sequence[int]) -> None:
        self._engine.eval(tokens)

    def clear(self) -> None:
        self._engine.reset()

    def counters(self) -> dict[str, int]:
        stats = self._engine.stats()
        names = (
            "n_hit", "n_miss", "n_late", "n_evict", "n_read", "read_bytes", "stall_ns", "drive_ns", "n_streamed",
            "n_prefetch", "n_prefetch_used", "prefetch_bytes",
        )  # fmt: skip
        return {name: int(getattr(stats, name)) for name in names}

    def facts(self) -> dict[str, Any]:
        stats, plan = self._engine.stats(), self._engine.plan
        return {
            "n_slot": stats.n_slot,
            "cache_bytes": stats.cache_bytes,
            "dense_bytes": stats.dense_bytes,
            "direct_io": stats.direct_io,
            "reader": stats.reader,
            "n_ubatch": plan.n_ubatch,
            "prefetch_paused": stats.prefetch_paused,
            "with_ns": stats.with_ns,
            "without_ns": stats.without_ns,
        }

    def trace(self, path: str | None) -> None:
        self._engine.trace(path)


class LlamaCpp:
    """Stock llama.cpp with its default mmap, through llama-cpp-python's low-level bindings."""

    N_UBATCH = 512  # llama.cpp's default
    REPACKS = False  # copies weights into the layout that its kernels like best (`use_extra_bufts`)

    def __init__(self, setting: Setting) -> None:
        llama = self._llama = _bindings()
        # errors only: a benchmark's stderr is for what went wrong
        self._log = llama.llama_log_callback(
            lambda level, text, _: sys.stderr.write(text.decode()) if level == 4 else None
        )
        llama.llama_log_set(self._log, ctypes.c_void_p(0))
        llama.llama_backend_init()
        model_params = llama.llama_model_default_params()
        model_params.load_mode = llama.LLAMA_LOAD_MODE_MMAP
        model_params.use_extra_bufts = self.REPACKS
        self._model = llama.llama_model_load_from_file(setting.path.encode(), model_params)
        if not self._model:
            raise UnsupportedError(f"llama.cpp cannot load `{setting.path}`")
        params = llama.llama_context_default_params()
        params.n_ctx = setting.setup.ctx
        params.n_batch = params.n_ubatch = setting.setup.n_ubatch or self.N_UBATCH
        params.n_threads = params.n_threads_batch = setting.setup.n_threads
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise UnsupportedError(f"llama.cpp cannot make a context of {setting.setup.ctx} tokens")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._n_batch = params.n_batch

    def tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        n = self._llama.llama_tokenize(self._vocab, raw, len(raw), room, len(room), True, True)
        return list(room[:n])

    def append(self, tokens: Sequence[int]) -> None:
        for begin in range(0, len(tokens), self._n_batch):
            piece = tokens[begin : begin + self._n_batch]
            values = (ctypes.c_int32 * len(piece))(*piece)  # a batch only points at them
            status = self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(values, len(piece)))
            if status != 0:
                raise EdgeMoEError(f"llama.cpp failed to decode: status {status}")
        self._llama.llama_get_logits_ith(self._context, -1)  # waits for the computation

    def clear(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)

    def counters(self) -> dict[str, int]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"n_ubatch": self._n_batch, "load_mode": "mmap", "use_extra_bufts": self.REPACKS}

    def trace(self, path: str | None) -> None:
        raise UnsupportedError("llama.cpp records no trace")


class LlamaCppRepacked(LlamaCpp):
    """The same with repacked weights: faster where everything fits twice, out of the question where it does not."""

    REPACKS = True


def _bindings() -> Any:
    """llama_cpp.llama_cpp without the package around it, which would import numpy into the measurement."""
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(_native.llama_package())]  # another version would be another llama.cpp than ours
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


ENGINES: dict[str, type[EdgeMoE] | type[LlamaCpp]] = {
    "edgemoe": EdgeMoE,
    "llama.cpp": LlamaCpp,
    "llama.cpp repacked": LlamaCppRepacked,
}
