"""The two sides of the comparison: stock llama.cpp, and the native engine at a cache size of the test's choosing."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemoe import _abi as abi
from edgemoe import _native

N_CTX = 512


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override, which the bindings leave out."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p)]


@dataclass(frozen=True)
class OnGpu:
    """All that is dense on a GPU, and the experts of all layers but some. device: index among ggml's devices.

    cpu_layers: blocks whose experts stay on the CPU.
    """

    device: int
    cpu_layers: tuple[int, ...]

    def place(self, params: Any) -> list[Any]:
        """Set it in llama_model_params, as `llama-server --override-tensor` does. Returns what must stay alive."""
        import llama_cpp.llama_cpp as llama

        ggml = llama._lib  # looked up in what libllama links: a library opened by name would be a second copy
        get, host = ggml.ggml_backend_dev_get, ggml.ggml_backend_cpu_buffer_type
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        host.restype, host.argtypes = ctypes.c_void_p, []
        devices = (ctypes.c_void_p * 2)(get(self.device), None)
        assert devices[0]
        patterns = [rf"blk\.{layer}\.ffn_.*exps".encode() for layer in self.cpu_layers]
        overrides = (_Override * (len(patterns) + 1))(*(_Override(pattern, host()) for pattern in patterns))
        params.devices, params.tensor_buft_overrides = ctypes.addressof(devices), ctypes.addressof(overrides)
        params.n_gpu_layers, params.split_mode, params.main_gpu = 1 << 20, 0, 0
        return [devices, patterns, overrides]  # of which the last is null


def stock(
    path: Path,
    steps: Sequence[Sequence[int]],
    *,
    threads: int = 1,
    n_ubatch: int = 64,
    gpu: OnGpu | None = None,
    overrides: Sequence[tuple[str, int | float | bool]] = (),
    **context_params: Any,
) -> list[bytes]:
    """Logits of stock llama.cpp (mapped, not repacked) after each step, as bytes of float32.

    overrides: metadata that is other than the file says. context_params: other fields of llama_context_params.
    """
    import llama_cpp.llama_cpp as llama

    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.use_extra_bufts = False
    # Without a list llama.cpp takes every GPU that it sees. What is listed must live until the model is loaded.
    kept = gpu.place(model_params) if gpu else [(ctypes.c_void_p * 1)(None)]
    if not gpu:
        model_params.devices = ctypes.addressof(kept[0])
    if overrides:
        kept = [*kept, _kv_overrides(overrides)]
        model_params.kv_overrides = kept[-1]
    model = llama.llama_model_load_from_file(str(path).encode(), model_params)
    assert model, path
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = N_CTX, n_ubatch, n_ubatch
    params.n_threads = params.n_threads_batch = threads
    if gpu:
        params.offload_kqv, params.op_offload = True, False
    for name, value in context_params.items():
        setattr(params, name, value)
    context = llama.llama_init_from_model(model, params)
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = []
    for step in steps:
        for begin in range(0, len(step), n_ubatch):
            piece = step[begin : begin + n_ubatch]
            tokens = (ctypes.c_int32 * len(piece))(*piece)
            assert llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(piece))) == 0
        rows.append(ctypes.string_at(llama.llama_get_logits_ith(context, -1), 4 * n_vocab))
    llama.llama_free(context)
    llama.llama_model_free(model)
    del kept
    return rows


def _kv_overrides(overrides: Sequence[tuple[str, int | float | bool]]) -> Any:
    """A list of llama_model_kv_override, which one without a key ends."""
    import llama_cpp.llama_cpp as llama

    found = (llama.llama_model_kv_override * (len(overrides) + 1))()
    for one, (key, value) in zip(found, overrides, strict=False):
        one.key = key.encode()
        if isinstance(value, bool):
            one.tag, one.value.val_bool = 2, value
        elif isinstance(value, int):
            one.tag, one.value.val_i64 = 0, value
        else:
            one.tag, one.value.val_f64 = 1, value
    return found


@dataclass
class Streamed:
    """An open native engine."""

    handle: _native.EngineHandle
    n_vocab: int

    def row(self) -> bytes:
        return _native.text_logits(_native.engine_text(self.handle), 0, self.n_vocab).tobytes()

    def run(self, steps: Sequence[Sequence[int]]) -> list[bytes]:
        rows = []
        for step in steps:
            _native.engine_decode(self.handle, step, want_all=False)
            rows.append(self.row())
        return rows

    def verify(self, tokens: Sequence[int]) -> list[bytes]:
        """The rows of a pass over drafted tokens."""
        _native.engine_verify(self.handle, tokens)
        text = _native.engine_text(self.handle)
        return [_native.text_logits(text, i, self.n_vocab).tobytes() for i in range(len(tokens))]

    def select(self, sequence: int) -> None:
        _native.engine_select(self.handle, sequence)

    def step(self, tokens: dict[int, int]) -> list[bytes]:
        """A token of each of some sequences in one pass."""
        _native.engine_step(self.handle, list(tokens), list(tokens.values()))
        return [self.row_of(sequence) for sequence in tokens]

    def row_of(self, sequence: int) -> bytes:
        """What a sequence's last computation gave."""
        text = _native.engine_sequence_text(self.handle, sequence)
        return _native.text_logits(text, 0, self.n_vocab).tobytes()

    def stats(self) -> dict[str, Any]:
        return _native.engine_stats(self.handle)

    def rewind(self, n: int = 0) -> None:
        _native.engine_rewind(self.handle, n)


@contextmanager
def streamed(
    path: Path,
    *,
    share: float,
    threads: int = 1,  # two threads that spin on busy cores take ten times as long; test_resident.py varies them
    n_ubatch: int = 64,
    policy: int = 0,
    reader: int = 0,
    buffered: int = 0,
    lanes: int = 0,
    prefetch: int = abi.PREFETCH_AUTO,
    n_ctx: int = N_CTX,
    device: int = 0,
    n_gpu_layer: int = 0,
    gpu_experts: Sequence[int] = (),
    row_cache_bytes: int = 0,
    lossy: float = 0.0,
    n_sequence: int = 1,
    **more: Any,
) -> Iterator[Streamed]:
    """The engine with slots for `share` of all experts, at least the smallest cache that works.

    device: 0 for the CPU, else 1 + index of a GPU. gpu_experts: that it has besides those of whole layers.
    row_cache_bytes: 0, or tables stay in the file and so many bytes are for their rows. more: other fields of
    `emoe_setup`.
    """
    model = _native.model_open(str(path))
    shell = path.with_name(path.name + ".shell")
    if not _native.shell_check(model, str(shell)):
        _native.shell_write(model, str(shell), with_data=True)
    info = _native.model_info(model)
    setup = abi.Setup(
        n_ctx=n_ctx,
        n_ubatch=n_ubatch,
        n_threads=threads,
        n_outputs=abi.MAX_VERIFY,
        kv_type=1,
        device=device,
        n_gpu_layer=n_gpu_layer,
        n_read_lane=lanes,
        **more,
        policy=policy,
        buffered=buffered,
        reader=reader,
        prefetch=prefetch,
        gpu_experts=(ctypes.c_uint32 * len(gpu_experts))(*gpu_experts),
        n_gpu_expert=len(gpu_experts),
        row_cache_bytes=row_cache_bytes,
        lossy_nats=lossy,
        n_sequence=n_sequence,
    )
    # With every expert: also while a large batch borrows.
    cache_bytes = max(info["slot_min_bytes"], int(share * info["slot_bytes"]) + (64 << 20 if share >= 1 else 0))
    handle = _native.engine_open(model, str(shell), setup, cache_bytes)
    _native.model_close(model)
    try:
        yield Streamed(handle, _native.text_n_vocab(_native.engine_text(handle)))
    finally:
        _native.engine_close(handle)


def relative_error(a: bytes, b: bytes) -> float:
    """Largest difference over largest value."""
    import numpy

    x, y = numpy.frombuffer(a, numpy.float32), numpy.frombuffer(b, numpy.float32)
    return float(numpy.abs(x - y).max() / numpy.abs(y).max())
