"""What is in a model file: geometry, where its experts are, metadata. Reads headers only, never tensor data."""

from __future__ import annotations

import os
import weakref
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ... import _native
from ..._abi import ContextParams
from ...errors import EdgeMoEError, FormatError, StorageError, UnsupportedError, UsageError
from ..find.names import resolve

if TYPE_CHECKING:
    from typing import TypeGuard

    from ..onnx.model import OnnxModel

KV_TYPES = {"f16": 1, "q8_0": 8}  # ggml_type; f16 is what the model would use itself, q8_0 is lossy


@dataclass(frozen=True)
class ModelInfo:
    """Geometry of a model. Counts are of the whole model unless they say otherwise, sizes are bytes.

    n_expert, n_expert_used: routed experts of a MoE layer, and how many of them a token uses there (the largest).
    dense_bytes: every tensor that is not a routed expert. dense_token_bytes: the part read to compute one token.
    token_bytes: expert bytes that one token uses. slot_bytes: cache that holds every expert, alignment included.
    slot_min_bytes: the smallest cache that can decode. identity: changes when a file does.
    """

    n_layer: int
    n_moe_layer: int
    n_expert: int
    n_expert_used: int
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    n_file: int
    direct_io: bool
    file_bytes: int
    dense_bytes: int
    dense_token_bytes: int
    expert_bytes: int
    token_bytes: int
    slot_bytes: int
    slot_min_bytes: int
    n_expert_total: int
    identity: int
    architecture: str
    name: str


@dataclass(frozen=True)
class LayerInfo:
    """One layer with streamed experts.

    layer: block number in the model. n_matrix: matrices an expert. expert_bytes: one expert (mean over the layer).
    slot_bytes: cache that one expert occupies. types: "gate=Q4_K up=Q4_K down=Q6_K+":
    the most frequent type of each matrix, + when some experts have others.
    """

    layer: int
    n_expert: int
    n_matrix: int
    expert_bytes: int
    slot_bytes: int
    bits_per_weight: float
    types: str


@dataclass(frozen=True)
class ContextSizes:
    """What a context allocates, bytes.

    kv_bytes: KV cache and recurrent state. compute_bytes: llama.cpp's compute buffers. output_bytes: logits kept.
    scratch_bytes: edgemoe's own working space. vocab_bytes: tokenizer and metadata. decode_bytes: of compute and
    scratch, what is in use between large batches. prefill_bytes: the rest, which the expert cache lends to them.
    gpu_bytes: on the GPU, of which gpu_dense_bytes are dense weights that then take no host memory.
    """

    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    scratch_bytes: int
    vocab_bytes: int
    decode_bytes: int
    prefill_bytes: int
    gpu_bytes: int = 0
    gpu_dense_bytes: int = 0


class Model:
    """The headers of a GGUF file, opened with `open_model`. A context manager; reading from it is safe in any thread.

    path: the file as given. info: ModelInfo.
    """

    def __init__(self, path: Path, handle: _native.ModelHandle) -> None:
        self.path = path
        self._handle: _native.ModelHandle | None = handle
        self._finalizer = weakref.finalize(self, _native.model_close, handle)
        values = _native.model_info(handle)
        self.info = ModelInfo(**{**values, "direct_io": bool(values["direct_io"])})

    @property
    def handle(self) -> _native.ModelHandle:
        """For the native calls of this package. Raises UsageError after `close`."""
        if self._handle is None:
            raise UsageError(f"the model `{self.path}` is closed")
        return self._handle

    @cached_property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The layers with streamed experts, first to last."""
        return tuple(LayerInfo(**_native.model_layer(self.handle, i)) for i in range(self.info.n_moe_layer))

    def meta(self, key: str) -> str | None:
        """A metadata value as text ("tokenizer.chat_template"), None when it is absent or an array."""
        return _native.model_meta(self.handle, key)

    @cached_property
    def chat_template(self) -> str | None:
        """The model's own Jinja template, None when it has none (ChatML is used then)."""
        return self.meta("tokenizer.chat_template")

    @property
    def block_bytes(self) -> int:
        """Size of one expert matrix, the unit of reading (mean over the model)."""
        n_matrix = sum(layer.n_matrix * layer.n_expert for layer in self.layers)
        return max(1, self.info.expert_bytes // max(1, n_matrix))

    @property
    def main_type(self) -> str:
        """The ggml type of most expert matrices ("Q4_K")."""
        count = Counter(part.split("=")[-1].rstrip("+") for layer in self.layers for part in layer.types.split())
        return count.most_common(1)[0][0] if count else ""

    def measure(
        self,
        shell: Path,
        *,
        n_ctx: int,
        n_ubatch: int,
        n_threads: int,
        n_outputs: int = 1,
        kv_type: str = "f16",
        device: int = 0,
        n_gpu_layer: int = 0,
    ) -> ContextSizes:
        """What a context of this shape will allocate, asked of llama.cpp itself through a shell of this model."""
        context = context_params(n_ctx, n_ubatch, n_threads, n_outputs, kv_type, device, n_gpu_layer)
        sizes = _native.context_measure(self.handle, os.fspath(shell), context)
        # llama.cpp begins with one row of logits, and takes the others when they are first asked for.
        logits_bytes = min(n_outputs, n_ubatch) * self.info.n_vocab * 4
        return ContextSizes(**{**sizes, "output_bytes": max(sizes["output_bytes"], logits_bytes)})

    def close(self) -> None:
        """Give the headers' memory back. `info` stays, so do `layers` and `chat_template` if they were ever read."""
        self._handle = None
        self._finalizer()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def context_params(
    n_ctx: int, n_ubatch: int, n_threads: int, n_outputs: int, kv_type: str, device: int = 0, n_gpu_layer: int = 0
) -> ContextParams:
    """The native struct. device: 0 for the CPU, else 1 + `Gpu.index`. Raises UsageError for a `kv_type` that is
    not in KV_TYPES."""
    if kv_type not in KV_TYPES:
        raise UsageError(f"`{kv_type}` is not a type for the KV cache", hint="use `f16` (exact) or `q8_0` (lossy)")
    return ContextParams(
        n_ctx=n_ctx,
        n_ubatch=n_ubatch,
        n_threads=n_threads,
        n_outputs_max=n_outputs,
        kv_type=KV_TYPES[kv_type],
        device=device,
        n_gpu_layer=n_gpu_layer,
    )


def is_export(model: Model) -> TypeGuard[OnnxModel]:
    """Whether the model is an ONNX export, which ONNX Runtime runs."""
    return hasattr(model, "vocabulary")


def open_model(path: str | os.PathLike[str]) -> Model:
    """Read the headers of a GGUF file; of all files of a split set, given any of them; or of an ONNX export.

    path: a file, the folder of an export, or the name of a model (see `edgemoe.resolve`).
    Raises UsageError (no such file, a folder), StorageError, FormatError, UnsupportedError (not a MoE).
    """
    file = resolve(path)
    if file.is_dir() or file.suffix.lower() == ".onnx":
        from ..onnx.model import export_at, open_export

        folder = export_at(file)
        if folder is not None:
            return open_export(folder)
    _check_file(file)
    try:
        handle = _native.model_open(os.fspath(file))
    except FormatError as error:
        raise _hinted(error, "the file may be incomplete: compare its size, or download or copy it again") from None
    except UnsupportedError as error:
        raise _hinted(error, "edgemoe runs Mixture-of-Experts GGUF files; llama.cpp runs dense ones") from None
    except StorageError as error:
        raise _hinted(error, "check that every file of the model is there and readable") from None
    return Model(file, handle)


def _check_file(file: Path) -> None:
    try:
        if file.is_dir():
            inside = sorted(file.glob("*.gguf"))
            hint = f"give the file in it: `{inside[0]}`" if inside else "give a GGUF file"
            raise UsageError(f"`{file}` is a folder", hint=hint)
        found = file.is_file()
    except OSError as error:
        raise StorageError(f"cannot look at `{file}`: {error.strerror}") from None
    if not found:
        what = "is not a regular file" if file.exists() else "does not exist"
        raise UsageError(f"`{file}` {what}", hint="give the path of a GGUF file")


def _hinted(error: EdgeMoEError, hint: str) -> EdgeMoEError:
    return type(error)(error.message, hint=error.hint or hint)
