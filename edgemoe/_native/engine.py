"""Functions of edgemoe.h on engines, and on what they collect for calibration."""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from .. import _abi as abi
from .library import (
    EngineHandle,
    ModelHandle,
    TextHandle,
    check,
    float_pointer,
    handle_of,
    int32_pointer,
    library,
    values,
)


def expert_list(experts: Sequence[int]) -> dict[str, Any]:
    """The fields of Setup that say which experts a GPU has one by one."""
    return {"gpu_experts": (ctypes.c_uint32 * len(experts))(*experts), "n_gpu_expert": len(experts)}


def gpu_experts_measure(model: ModelHandle, experts: Sequence[int], n_ubatch: int) -> tuple[int, int]:
    """Bytes on the GPU and on the host for experts one by one."""
    gpu, host, error = ctypes.c_uint64(), ctypes.c_uint64(), abi.Error()
    numbers = (ctypes.c_uint32 * len(experts))(*experts)
    status = library().emoe_gpu_experts_measure(
        model, numbers, len(experts), n_ubatch, ctypes.byref(gpu), ctypes.byref(host), ctypes.byref(error)
    )
    check(status, error)
    return gpu.value, host.value


def gpu_experts_speed(model: ModelHandle, device: int, layer: int, n: int) -> int:
    """Nanoseconds for n experts of a layer on a GPU, from giving it a token's row to their results."""
    took, error = ctypes.c_uint64(), abi.Error()
    check(library().emoe_gpu_experts_speed(model, device, layer, n, ctypes.byref(took), ctypes.byref(error)), error)
    return took.value


def engine_open(model: ModelHandle, shell: str | None, setup: abi.Setup, cache_bytes: int) -> EngineHandle:
    """shell: None for one in memory."""
    handle, error = ctypes.c_void_p(), abi.Error()
    status = library().emoe_engine_open(
        model, shell and os.fsencode(shell), ctypes.byref(setup), cache_bytes, ctypes.byref(handle), ctypes.byref(error)
    )
    return EngineHandle(handle_of(status, handle, error))


def engine_close(engine: EngineHandle) -> None:
    library().emoe_engine_close(engine)


def engine_decode(engine: EngineHandle, tokens: Sequence[int], *, want_all: bool) -> None:
    error = abi.Error()
    values = array("i", tokens)
    status = library().emoe_engine_decode(
        engine, int32_pointer(values), len(values), int(want_all), ctypes.byref(error)
    )
    check(status, error)


def engine_verify(engine: EngineHandle, tokens: Sequence[int]) -> None:
    error = abi.Error()
    values = array("i", tokens)
    check(library().emoe_engine_verify(engine, int32_pointer(values), len(values), ctypes.byref(error)), error)


def engine_can_verify(engine: EngineHandle) -> None:
    """Raises UnsupportedError, saying why, when `engine_verify` would."""
    error = abi.Error()
    check(library().emoe_engine_can_verify(engine, ctypes.byref(error)), error)


def engine_text(engine: EngineHandle) -> TextHandle:
    """The engine's vocabulary and logits, valid as long as it is open."""
    return TextHandle(library().emoe_engine_text(engine) or 0)


def engine_select(engine: EngineHandle, sequence: int) -> None:
    """The sequence that the calls below, and `engine_decode`, are about from now on."""
    error = abi.Error()
    check(library().emoe_engine_select(engine, sequence, ctypes.byref(error)), error)


def engine_step(engine: EngineHandle, sequences: Sequence[int], tokens: Sequence[int]) -> None:
    """Append a token to each of these sequences in one pass."""
    error = abi.Error()
    values, numbers = array("i", tokens), (ctypes.c_uint32 * len(sequences))(*sequences)
    status = library().emoe_engine_step(engine, numbers, int32_pointer(values), len(values), ctypes.byref(error))
    check(status, error)


def engine_sequence_text(engine: EngineHandle, sequence: int) -> TextHandle:
    """The vocabulary and one sequence's logits, valid as long as the engine is open."""
    return TextHandle(library().emoe_engine_sequence_text(engine, sequence) or 0)


def engine_n_ctx(engine: EngineHandle) -> int:
    return int(library().emoe_engine_n_ctx(engine))


def engine_n_past(engine: EngineHandle) -> int:
    return int(library().emoe_engine_n_past(engine))


def engine_rewind(engine: EngineHandle, n: int) -> None:
    error = abi.Error()
    check(library().emoe_engine_rewind(engine, n, ctypes.byref(error)), error)


def engine_can_cut(engine: EngineHandle) -> bool:
    return bool(library().emoe_engine_can_cut(engine))


def engine_state_key(engine: EngineHandle) -> int:
    """What a state belongs to: model, setup, library."""
    return int(library().emoe_engine_state_key(engine))


def engine_state_bytes(engine: EngineHandle) -> int:
    return int(library().emoe_engine_state_bytes(engine))


def engine_state(engine: EngineHandle, n_bytes: int) -> bytearray:
    """The sequence's state, of as many bytes as `engine_state_bytes` said."""
    return _state(library().emoe_engine_state_get, engine, n_bytes)


def engine_set_state(engine: EngineHandle, state: bytearray) -> None:
    _set_state(library().emoe_engine_state_set, engine, state)


def engine_checkpoint_bytes(engine: EngineHandle) -> int:
    return int(library().emoe_engine_checkpoint_bytes(engine))


def engine_checkpoint(engine: EngineHandle, n_bytes: int) -> bytearray:
    """What cannot be cut of the sequence's state, of as many bytes as `engine_checkpoint_bytes` said."""
    return _state(library().emoe_engine_checkpoint_get, engine, n_bytes)


def engine_set_checkpoint(engine: EngineHandle, state: bytearray) -> None:
    _set_state(library().emoe_engine_checkpoint_set, engine, state)


def _state(get: Callable[..., int], engine: EngineHandle, n_bytes: int) -> bytearray:
    state, written, error = bytearray(n_bytes), ctypes.c_uint64(), abi.Error()
    view = (ctypes.c_char * n_bytes).from_buffer(state)
    check(get(engine, view, n_bytes, ctypes.byref(written), ctypes.byref(error)), error)
    return state


def _set_state(put: Callable[..., int], engine: EngineHandle, state: bytearray) -> None:
    error = abi.Error()
    view = (ctypes.c_char * len(state)).from_buffer(state)
    check(put(engine, view, len(state), ctypes.byref(error)), error)


def engine_cancel(engine: EngineHandle) -> None:
    library().emoe_engine_cancel(engine)


def engine_set_cache_bytes(engine: EngineHandle, cache_bytes: int) -> None:
    error = abi.Error()
    check(library().emoe_engine_set_cache_bytes(engine, cache_bytes, ctypes.byref(error)), error)


def engine_stats(engine: EngineHandle) -> dict[str, Any]:
    stats, error = abi.Stats(), abi.Error()
    check(library().emoe_engine_get_stats(engine, ctypes.byref(stats), ctypes.byref(error)), error)
    return values(stats)


def engine_resident(engine: EngineHandle, index: int) -> int:
    return int(library().emoe_engine_resident(engine, index))


def engine_experts(engine: EngineHandle, index: int) -> bytes:
    """One byte for each expert of MoE layer `index`: EXPERT_* bits."""
    n = int(library().emoe_engine_experts(engine, index, None, 0))
    states = (ctypes.c_uint8 * n)()
    library().emoe_engine_experts(engine, index, states, n)
    return bytes(states)


def engine_accuracy(engine: EngineHandle, index: int) -> tuple[list[int], list[int]]:
    """(experts used, of them predicted) by layers looked ahead, 1 to MAX_DEPTH."""
    accuracy, error = abi.Accuracy(), abi.Error()
    check(library().emoe_engine_accuracy(engine, index, ctypes.byref(accuracy), ctypes.byref(error)), error)
    return list(accuracy.n_used), list(accuracy.n_found)


def engine_rates(engine: EngineHandle) -> array[float]:
    """Probability of use of each expert, all layers in turn; empty when the policy keeps none."""
    n = int(library().emoe_engine_rates(engine, None, 0))
    rates = array("f", bytes(4 * n))
    library().emoe_engine_rates(engine, float_pointer(rates), n)
    return rates


def engine_warm_start(engine: EngineHandle, rates: array[float]) -> None:
    library().emoe_engine_warm_start(engine, float_pointer(rates), len(rates))


def engine_trace(engine: EngineHandle, path: str | None, header: str = "{}") -> None:
    """Begin a trace, or with None end it."""
    error = abi.Error()
    status = library().emoe_engine_trace(
        engine, None if path is None else os.fsencode(path), header.encode("utf-8"), ctypes.byref(error)
    )
    check(status, error)


def engine_inject_fault(engine: EngineHandle, kind: int, n: int) -> None:
    library().emoe_engine_inject_fault(engine, kind, n)


# ---------------------------------------------------------------- calibration


def collect_bytes(engine: EngineHandle, n_sample: int) -> int:
    return int(library().emoe_collect_bytes(engine, n_sample))


def collect_begin(engine: EngineHandle, n_sample: int, sample_stride: int) -> None:
    error = abi.Error()
    check(library().emoe_collect_begin(engine, n_sample, sample_stride, ctypes.byref(error)), error)


def collect_end(engine: EngineHandle) -> None:
    library().emoe_collect_end(engine)


def collect_noise(engine: EngineHandle, index: int, share: float, spared: bytes) -> None:
    """spared: a byte an expert, 1: it gets none; empty: all get some."""
    flags, error = (ctypes.c_uint8 * len(spared)).from_buffer_copy(spared), abi.Error()
    status = library().emoe_collect_noise(engine, index, share, flags, len(spared), ctypes.byref(error))
    check(status, error)


def collect_skip(engine: EngineHandle, cost: array[float], missing: bytes, limit: float) -> None:
    """cost, missing: of each expert; of none, nothing is left out any more."""
    flags, error = (ctypes.c_uint8 * len(missing)).from_buffer_copy(missing), abi.Error()
    pointer = float_pointer(cost) if cost else None
    status = library().emoe_collect_skip(engine, pointer, flags, len(cost), limit, ctypes.byref(error))
    check(status, error)


def collect_skipped(engine: EngineHandle) -> float:
    return float(library().emoe_collect_skipped(engine))


def collect_read(engine: EngineHandle, index: int, kind: int, n: int) -> array[float]:
    """n values of EMOE_COLLECT_* kind, of MoE layer `index`."""
    found, error = array("f", bytes(4 * n)), abi.Error()
    pointer = float_pointer(found)
    check(library().emoe_collect_read(engine, index, kind, pointer, n, ctypes.byref(error)), error)
    return found
