"""Load libedgemoe and call it: the only module that touches ctypes.

Every function here is one function of native/include/edgemoe.h, with Python types and with exceptions for statuses.
The library is loaded at the first call. libllama is opened as the very file that the llama_cpp package opens, without
importing that package, so that a process never holds two copies, whichever is imported first.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NewType

from . import _abi as abi
from .errors import (
    BudgetError,
    Cancelled,
    ContextFullError,
    EdgeMoEError,
    FormatError,
    NativeError,
    StorageError,
    UnsupportedError,
    UsageError,
)

LLAMA_VERSION = "0.3.36"  # of llama-cpp-python; the same pin as in pyproject.toml: its C structs are no stable ABI

ModelHandle = NewType("ModelHandle", int)
EngineHandle = NewType("EngineHandle", int)
SamplerHandle = NewType("SamplerHandle", int)
PolicyHandle = NewType("PolicyHandle", int)

_ERRORS: dict[int, type[EdgeMoEError]] = {
    abi.ERR_ARGUMENT: UsageError,
    abi.ERR_IO: StorageError,
    abi.ERR_FORMAT: FormatError,
    abi.ERR_UNSUPPORTED: UnsupportedError,
    abi.ERR_MEMORY: BudgetError,
    abi.ERR_CANCELLED: Cancelled,
    abi.ERR_CONTEXT: ContextFullError,
    abi.ERR_INTERNAL: NativeError,
}


def check(status: int, error: abi.Error) -> None:
    """Raise the exception of a status other than EMOE_OK, with the library's sentence."""
    if status != abi.OK:
        message = error.message.decode("utf-8", "replace") or f"the native library failed with status {status}"
        raise _ERRORS.get(status, NativeError)(message)


def _library_name(stem: str) -> str:
    if sys.platform == "win32":
        return f"{stem}.dll"
    return f"lib{stem}.dylib" if sys.platform == "darwin" else f"lib{stem}.so"


def _llama_library() -> Path:
    """libllama of the installed llama-cpp-python, its version checked."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = list(spec.submodule_search_locations or []) if spec else []
    install = f"install `llama-cpp-python=={LLAMA_VERSION}` in this Python environment"
    if not folders:
        raise NativeError("llama-cpp-python is not installed", hint=install)
    folder = Path(folders[0])
    # The text of the package, not importlib.metadata: that costs 6 MB of memory that the expert cache can use.
    found = re.search(r'^__version__ = "([^"]+)"', (folder / "__init__.py").read_text("utf-8"), re.MULTILINE)
    version = found[1] if found else "of an unknown version"
    if version != LLAMA_VERSION:
        raise NativeError(f"llama-cpp-python is {version}, edgemoe needs exactly {LLAMA_VERSION}", hint=install)
    path = folder / "lib" / _library_name("llama")
    if not path.is_file():
        raise NativeError(f"llama-cpp-python has no `{path}`", hint=install)
    return path


def _edgemoe_library() -> Path:
    # An editable install has its Python files and its built files in two folders; both are on __path__.
    folders = [Path(folder) / "lib" for folder in sys.modules[__package__ or "edgemoe"].__path__]
    for folder in folders:
        path = folder / _library_name("edgemoe")
        if path.is_file():
            return path
    raise NativeError(
        f"`{_library_name('edgemoe')}` is missing from `{folders[0]}`",
        hint="reinstall edgemoe; in a checkout, `pip install -e .` builds it",
    )


# Turns that a thread of libgomp spins at a barrier before it sleeps. Its default of 300,000 burns a core for
# milliseconds whenever another thread is late, and every thread is late when something else wants the cores: with one
# busy neighbour on two cores decode falls to a tenth. 2,000 costs nothing on a quiet machine
# (docs/experiments/spin-count.md).
_SPIN_COUNT = "2000"


def _sleep_at_barriers() -> None:
    if not any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT  # read by libgomp as it is loaded, here or never


@functools.cache
def library() -> ctypes.CDLL:
    """libedgemoe, loaded and with its types declared. Raises NativeError."""
    ours, llama = _edgemoe_library(), _llama_library()
    _sleep_at_barriers()
    try:
        ctypes.CDLL(str(llama), mode=ctypes.RTLD_GLOBAL)
        loaded = ctypes.CDLL(str(ours))
    except OSError as error:
        raise NativeError(f"cannot load the native library: {error}", hint="reinstall edgemoe") from None
    loaded.emoe_abi_version.restype = ctypes.c_uint32
    version = loaded.emoe_abi_version()
    if version != abi.ABI_VERSION:
        raise NativeError(
            f"`{ours}` has interface version {version}, this package needs {abi.ABI_VERSION}",
            hint="reinstall edgemoe; in a checkout, `pip install -e .` builds it anew",
        )
    for name, (restype, argtypes) in abi.FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = restype, argtypes
    return loaded


def _values(struct: abi.Struct) -> dict[str, Any]:
    """Fields of a struct by name, text decoded; without those that only concern the ABI."""
    values = {field[0]: getattr(struct, field[0]) for field in struct._fields_}
    values.pop("struct_size")
    values.pop("reserved", None)
    return {
        key: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for key, value in values.items()
    }


def build_info() -> str:
    """What the library was compiled against and what it runs on."""
    return str(library().emoe_build_info().decode("utf-8", "replace"))


@functools.cache
def build_stamp() -> str:
    """Changes whenever the library does: for what was measured with it."""
    status = _edgemoe_library().stat()
    return f"{build_info()}; {status.st_size} bytes of {status.st_mtime_ns}"


def set_log_level(level: int) -> None:
    """Which log lines of llama.cpp reach stderr: 0 none, 1 errors, 2 warnings, 3 everything."""
    library().emoe_set_log_level(level)


def trim_heap() -> None:
    """Give freed memory back to the system. glibc keeps it otherwise; other allocators do not need telling."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


_IO_URING_SETUP = 425  # number of the system call, the same on every processor but alpha


def io_uring_allowed() -> bool:
    """Whether the kernel gives this process an io_uring that the library can use. Containers often forbid it."""
    if sys.platform != "linux":
        return False
    params = (ctypes.c_uint32 * 30)()  # struct io_uring_params
    ring = ctypes.CDLL(None).syscall(_IO_URING_SETUP, 1, params)
    if ring < 0:
        return False
    os.close(ring)
    return bool(params[5] & 1)  # features: IORING_FEAT_SINGLE_MMAP, which native/src/io/uring.cpp wants


# ---------------------------------------------------------------- model


def model_open(path: str) -> ModelHandle:
    handle, error = ctypes.c_void_p(), abi.Error()
    check(library().emoe_model_open(os.fsencode(path), ctypes.byref(handle), ctypes.byref(error)), error)
    return ModelHandle(handle.value or 0)


def model_close(model: ModelHandle) -> None:
    library().emoe_model_close(model)


def model_info(model: ModelHandle) -> dict[str, Any]:
    info, error = abi.ModelInfo(), abi.Error()
    check(library().emoe_model_get_info(model, ctypes.byref(info), ctypes.byref(error)), error)
    return _values(info)


def model_layer(model: ModelHandle, index: int) -> dict[str, Any]:
    info, error = abi.LayerInfo(), abi.Error()
    check(library().emoe_model_get_layer(model, index, ctypes.byref(info), ctypes.byref(error)), error)
    return _values(info)


def model_meta(model: ModelHandle, key: str) -> str | None:
    """A metadata value as text, None when the key is absent or an array."""
    name, room = key.encode("utf-8"), 256
    while True:
        buffer = ctypes.create_string_buffer(room)
        length = library().emoe_model_meta(model, name, buffer, room)
        if length < room:
            return None if length < 0 else buffer.raw[:length].decode("utf-8", "replace")
        room = length + 1


def shell_write(model: ModelHandle, path: str, *, with_data: bool) -> None:
    error = abi.Error()
    check(library().emoe_shell_write(model, os.fsencode(path), int(with_data), ctypes.byref(error)), error)


def shell_check(model: ModelHandle, path: str) -> bool:
    """Whether `path` is a finished shell of this model."""
    return bool(library().emoe_shell_check(model, os.fsencode(path), None) == abi.OK)


def context_measure(model: ModelHandle, shell: str, context: abi.ContextParams) -> dict[str, Any]:
    sizes, error = abi.ContextSizes(), abi.Error()
    status = library().emoe_context_measure(
        model, os.fsencode(shell), ctypes.byref(context), ctypes.byref(sizes), ctypes.byref(error)
    )
    check(status, error)
    return _values(sizes)


# ---------------------------------------------------------------- engine


def expert_list(experts: Sequence[int]) -> dict[str, Any]:
    """The fields of EngineParams that say which experts a GPU has one by one."""
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


def engine_open(model: ModelHandle, shell: str, params: abi.EngineParams) -> EngineHandle:
    handle, error = ctypes.c_void_p(), abi.Error()
    status = library().emoe_engine_open(
        model, os.fsencode(shell), ctypes.byref(params), ctypes.byref(handle), ctypes.byref(error)
    )
    check(status, error)
    return EngineHandle(handle.value or 0)


def engine_close(engine: EngineHandle) -> None:
    library().emoe_engine_close(engine)


def _int32_pointer(values: array[int]) -> Any:
    # Not `c_int32 * n`: ctypes keeps an array type for every n that was ever used.
    return ctypes.cast(values.buffer_info()[0], ctypes.POINTER(ctypes.c_int32))


def engine_decode(engine: EngineHandle, tokens: Sequence[int], *, want_all: bool) -> None:
    error = abi.Error()
    values = array("i", tokens)
    status = library().emoe_engine_decode(
        engine, _int32_pointer(values), len(values), int(want_all), ctypes.byref(error)
    )
    check(status, error)


def engine_verify(engine: EngineHandle, tokens: Sequence[int]) -> None:
    error = abi.Error()
    values = array("i", tokens)
    check(library().emoe_engine_verify(engine, _int32_pointer(values), len(values), ctypes.byref(error)), error)


def engine_can_verify(engine: EngineHandle) -> None:
    """Raises UnsupportedError, saying why, when `engine_verify` would."""
    error = abi.Error()
    check(library().emoe_engine_can_verify(engine, ctypes.byref(error)), error)


def engine_logits(engine: EngineHandle, row: int, n_vocab: int) -> array[float]:
    """A copy of one row of logits, float32 [n_vocab]. Raises UsageError when there is no such row."""
    pointer = library().emoe_engine_logits(engine, row)
    if not pointer:
        raise UsageError(f"the last evaluation kept no logits in row {row}")
    values = array("f")
    values.frombytes(ctypes.string_at(pointer, n_vocab * values.itemsize))
    return values


def engine_n_past(engine: EngineHandle) -> int:
    return int(library().emoe_engine_n_past(engine))


def engine_rewind(engine: EngineHandle, n: int) -> None:
    error = abi.Error()
    check(library().emoe_engine_rewind(engine, n, ctypes.byref(error)), error)


def engine_cancel(engine: EngineHandle) -> None:
    library().emoe_engine_cancel(engine)


def engine_set_cache_bytes(engine: EngineHandle, cache_bytes: int) -> None:
    error = abi.Error()
    check(library().emoe_engine_set_cache_bytes(engine, cache_bytes, ctypes.byref(error)), error)


def engine_stats(engine: EngineHandle) -> dict[str, Any]:
    stats, error = abi.Stats(), abi.Error()
    check(library().emoe_engine_get_stats(engine, ctypes.byref(stats), ctypes.byref(error)), error)
    return _values(stats)


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
    library().emoe_engine_rates(engine, _float_pointer(rates), n)
    return rates


def engine_warm_start(engine: EngineHandle, rates: array[float]) -> None:
    library().emoe_engine_warm_start(engine, _float_pointer(rates), len(rates))


def engine_trace(engine: EngineHandle, path: str | None, header: str = "{}") -> None:
    """Begin a trace, or with None end it."""
    error = abi.Error()
    status = library().emoe_engine_trace(
        engine, None if path is None else os.fsencode(path), header.encode("utf-8"), ctypes.byref(error)
    )
    check(status, error)


def _float_pointer(values: array[float]) -> Any:
    return ctypes.cast(values.buffer_info()[0], ctypes.POINTER(ctypes.c_float))


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


def collect_noise(engine: EngineHandle, index: int, share: float, limit: float) -> None:
    error = abi.Error()
    check(library().emoe_collect_noise(engine, index, share, limit, ctypes.byref(error)), error)


def collect_read(engine: EngineHandle, index: int, kind: int, n: int) -> array[float]:
    """n values of EMOE_COLLECT_* kind, of MoE layer `index`."""
    values, error = array("f", bytes(4 * n)), abi.Error()
    pointer = ctypes.cast(values.buffer_info()[0], ctypes.POINTER(ctypes.c_float))
    check(library().emoe_collect_read(engine, index, kind, pointer, n, ctypes.byref(error)), error)
    return values


# ---------------------------------------------------------------- text


def engine_tokenize(engine: EngineHandle, raw: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
    room = len(raw) + 8  # a token is a byte or more, and a few are added
    while True:
        tokens = array("i", bytes(4 * room))
        pointer = _int32_pointer(tokens)
        n = library().emoe_engine_tokenize(engine, raw, len(raw), int(add_special), int(parse_special), pointer, room)
        if n < 0:
            raise NativeError(f"the tokenizer failed on a text of {len(raw)} bytes")
        if n <= room:
            return tokens[:n].tolist()
        room = n


def engine_piece(engine: EngineHandle, token: int, *, special: bool) -> bytes:
    room = 64
    while True:
        buffer = ctypes.create_string_buffer(room)
        n = library().emoe_engine_piece(engine, token, int(special), buffer, room)
        if n < 0:
            raise UsageError(f"the vocabulary has no token {token}")
        if n <= room:
            return buffer.raw[:n]
        room = n


def engine_is_eog(engine: EngineHandle, token: int) -> bool:
    return bool(library().emoe_engine_is_eog(engine, token))


def engine_bos(engine: EngineHandle) -> int:
    return int(library().emoe_engine_bos(engine))


def engine_eos(engine: EngineHandle) -> int:
    return int(library().emoe_engine_eos(engine))


def engine_n_vocab(engine: EngineHandle) -> int:
    return int(library().emoe_engine_n_vocab(engine))


def engine_n_ctx(engine: EngineHandle) -> int:
    return int(library().emoe_engine_n_ctx(engine))


def vocabulary_open(path: str) -> EngineHandle:
    """An engine for text and sampling only: the caller computes, and tells it the logits."""
    handle, error = ctypes.c_void_p(), abi.Error()
    check(library().emoe_vocabulary_open(os.fsencode(path), ctypes.byref(handle), ctypes.byref(error)), error)
    return EngineHandle(handle.value or 0)


def vocabulary_set_logits(engine: EngineHandle, address: int, n_row: int) -> None:
    """address: of float32 [n_row, n_vocab], which must stay there until the next call."""
    error = abi.Error()
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
    check(library().emoe_vocabulary_set_logits(engine, pointer, n_row, ctypes.byref(error)), error)


# ---------------------------------------------------------------- sampling


def sampler_open(params: abi.SamplerParams) -> SamplerHandle:
    handle, error = ctypes.c_void_p(), abi.Error()
    check(library().emoe_sampler_open(ctypes.byref(params), ctypes.byref(handle), ctypes.byref(error)), error)
    return SamplerHandle(handle.value or 0)


def sampler_close(sampler: SamplerHandle) -> None:
    library().emoe_sampler_close(sampler)


def sampler_sample(sampler: SamplerHandle, engine: EngineHandle, row: int = 0) -> int:
    return int(library().emoe_sampler_sample(sampler, engine, row))


def sampler_constrain(
    sampler: SamplerHandle,
    engine: EngineHandle,
    *,
    bias: Sequence[tuple[int, float]],
    presence_penalty: float,
    frequency_penalty: float,
    grammar: str,
    grammar_trigger: str,
) -> None:
    error = abi.Error()
    tokens, values = array("i", (token for token, _ in bias)), array("f", (value for _, value in bias))
    constraint = abi.Constraint(
        n_bias=len(bias),
        bias_tokens=_int32_pointer(tokens),
        bias_values=_float_pointer(values),
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        grammar=grammar.encode("utf-8", "replace") or None,
        grammar_trigger=grammar_trigger.encode("utf-8", "replace") or None,
    )
    check(library().emoe_sampler_constrain(sampler, engine, ctypes.byref(constraint), ctypes.byref(error)), error)


def engine_logprobs(engine: EngineHandle, row: int, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token, and the n_top likeliest tokens with theirs."""
    error, logprob = abi.Error(), ctypes.c_float()
    tokens, values = array("i", bytes(4 * n_top)), array("f", bytes(4 * n_top))
    status = library().emoe_engine_logprobs(
        engine, row, token, ctypes.byref(logprob), n_top, _int32_pointer(tokens), _float_pointer(values),
        ctypes.byref(error),
    )  # fmt: skip
    check(status, error)
    return logprob.value, list(zip(tokens, values, strict=True))


# ---------------------------------------------------------------- eviction policies


def policy_open(kind: int, n_expert: Sequence[int], n_expert_used: int) -> PolicyHandle:
    handle, error, counts = ctypes.c_void_p(), abi.Error(), array("I", n_expert)
    status = library().emoe_policy_open(
        kind, _uint32_pointer(counts), len(counts), n_expert_used, ctypes.byref(handle), ctypes.byref(error)
    )
    check(status, error)
    return PolicyHandle(handle.value or 0)


def policy_close(policy: PolicyHandle) -> None:
    library().emoe_policy_close(policy)


def policy_visit(
    policy: PolicyHandle, layer: int, n_token: int, experts: array[int], n_row: array[int], weight: array[float]
) -> None:
    """experts, n_row: uint32; weight: float32; one entry an expert that was used."""
    error = abi.Error()
    status = library().emoe_policy_visit(
        policy, layer, n_token, _uint32_pointer(experts), _uint32_pointer(n_row), _float_pointer(weight), len(experts),
        ctypes.byref(error),
    )  # fmt: skip
    check(status, error)


def policy_badness(policy: PolicyHandle, n: int) -> array[float]:
    """Of all n experts: the larger, the sooner to be given up."""
    error, values = abi.Error(), array("f", bytes(4 * n))
    check(library().emoe_policy_badness(policy, _float_pointer(values), n, ctypes.byref(error)), error)
    return values


def policy_rates(policy: PolicyHandle) -> array[float]:
    n = int(library().emoe_policy_rates(policy, None, 0))
    rates = array("f", bytes(4 * n))
    library().emoe_policy_rates(policy, _float_pointer(rates), n)
    return rates


def policy_warm_start(policy: PolicyHandle, rates: array[float]) -> None:
    library().emoe_policy_warm_start(policy, _float_pointer(rates), len(rates))


def _uint32_pointer(values: array[int]) -> Any:
    return ctypes.cast(values.buffer_info()[0], ctypes.POINTER(ctypes.c_uint32))


# ---------------------------------------------------------------- mapped files

_WILL_NEED, _DONT_NEED, _POPULATE_READ = 3, 4, 22  # of madvise on Linux


@functools.cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def map_expect(address: int, n_bytes: int) -> None:
    """These pages of a mapped file will be wanted soon: the kernel begins to read them. address: of a page."""
    _madvise()(address, n_bytes, _WILL_NEED)


def map_fill(address: int, n_bytes: int) -> bool:
    """Read these pages of a mapped file now. False when they cannot be read, or the kernel is older than 5.14."""
    return bool(_madvise()(address, n_bytes, _POPULATE_READ) == 0)


def map_drop(address: int, n_bytes: int) -> None:
    """Take these pages of a mapped file out of the process; their next use reads them again."""
    _madvise()(address, n_bytes, _DONT_NEED)


# ---------------------------------------------------------------- replay


def replay(
    *,
    n_expert: Sequence[int],
    n_expert_used: int,
    policy: int,
    per_layer: bool,
    n_slot: int,
    visits: tuple[array[int], array[int], array[int]],
    uses: tuple[array[int], array[int], array[float]],
    from_visit: int,
) -> tuple[int, int]:
    """(uses, misses). visits: layer, n_token, n_use (uint32 each); uses: expert, n_row (uint32), weight (float32)."""

    def pointer(values: Any, kind: Any) -> Any:
        return ctypes.cast(values.buffer_info()[0], ctypes.POINTER(kind))

    experts = array("I", n_expert)
    params = abi.ReplayParams(
        n_layer=len(experts),
        n_expert=pointer(experts, ctypes.c_uint32),
        n_expert_used=n_expert_used,
        policy=policy,
        per_layer=int(per_layer),
        n_slot=n_slot,
        n_visit=len(visits[0]),
        layer=pointer(visits[0], ctypes.c_uint32),
        n_token=pointer(visits[1], ctypes.c_uint32),
        n_use=pointer(visits[2], ctypes.c_uint32),
        expert=pointer(uses[0], ctypes.c_uint32),
        n_row=pointer(uses[1], ctypes.c_uint32),
        weight=pointer(uses[2], ctypes.c_float),
        from_visit=from_visit,
    )
    n_use, n_miss, error = ctypes.c_uint64(), ctypes.c_uint64(), abi.Error()
    status = library().emoe_replay(ctypes.byref(params), ctypes.byref(n_use), ctypes.byref(n_miss), ctypes.byref(error))
    check(status, error)
    return n_use.value, n_miss.value


# ---------------------------------------------------------------- measuring


def devices() -> list[dict[str, Any]]:
    """ggml's devices: the fields of `emoe_device_info`."""
    found = []
    for i in range(library().emoe_device_count()):
        info, error = abi.DeviceInfo(), abi.Error()
        check(library().emoe_device_get(i, ctypes.byref(info), ctypes.byref(error)), error)
        found.append(_values(info))
    return found


def backend_load(path: str) -> None:
    error = abi.Error()
    check(library().emoe_backend_load(os.fsencode(path), ctypes.byref(error)), error)


def storage_measure(path: str, block_bytes: int, n_lane: int, max_bytes: int, max_ns: int) -> dict[str, Any]:
    speed, error = abi.StorageSpeed(), abi.Error()
    status = library().emoe_storage_measure(
        os.fsencode(path), block_bytes, n_lane, max_bytes, max_ns, ctypes.byref(speed), ctypes.byref(error)
    )
    check(status, error)
    return _values(speed)


def compute_measure(type_name: str, n_threads: int, max_ns: int) -> int:
    rate, error = ctypes.c_uint64(), abi.Error()
    status = library().emoe_compute_measure(
        type_name.encode("utf-8"), n_threads, max_ns, ctypes.byref(rate), ctypes.byref(error)
    )
    check(status, error)
    return rate.value
