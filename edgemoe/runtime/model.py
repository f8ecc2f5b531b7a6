"""What is known of a model, whatever its format: geometry, where its experts are, metadata. No tensor data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from .. import _native
from .._abi import ModelInfo as NativeInfo
from ..errors import UnsupportedError
from .text.sampling import Recommended


@dataclass(frozen=True)
class ModelInfo:
    """Geometry of a model. Counts are of the whole model unless they say otherwise, sizes are bytes.

    n_expert, n_expert_used: routed experts of a MoE layer, and how many of them a token uses there (the largest).
    dense_bytes: every tensor that is not a routed expert. dense_token_bytes: the part read to compute one token.
    token_bytes: expert bytes that one token uses. slot_bytes: cache that holds every expert, alignment included.
    slot_min_bytes: the smallest cache that can decode. identity: changes when a file does.
    table_bytes: of dense_bytes, tables: tensors that are only looked up by row (embeddings).
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
    table_bytes: int = 0

    def native(self) -> NativeInfo:
        """The struct of edgemoe.h."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        texts = {"architecture": self.architecture.encode()[:63], "name": self.name.encode()[:191]}
        return NativeInfo(**{**values, **texts, "direct_io": int(self.direct_io)})


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


class Model(ABC):
    """The headers of a model, opened with `open_model`. A context manager; reading from it is safe in any thread.

    path: as given. info: ModelInfo. format: the key of its format in `formats.FORMATS`. override_kv: see `Setup`.
    """

    format: ClassVar[str]
    path: Path
    info: ModelInfo
    override_kv: tuple[str, ...] = ()

    @property
    def handle(self) -> _native.ModelHandle:
        """For the native calls of this package on GGUF files. Raises UnsupportedError for any other format."""
        raise UnsupportedError(f"`{self.path}` is no GGUF file: this works on those alone")

    @property
    @abstractmethod
    def layers(self) -> tuple[LayerInfo, ...]:
        """The layers with streamed experts, first to last."""

    @abstractmethod
    def meta(self, key: str) -> str | None:
        """A metadata value as text ("tokenizer.chat_template"), None when it is absent or an array."""

    @cached_property
    def chat_template(self) -> str | None:
        """The model's own Jinja template, None when it has none (ChatML is used then)."""
        return self.meta("tokenizer.chat_template")

    @cached_property
    def recommended(self) -> Recommended:
        """How tokens are picked where nobody says otherwise."""
        return Recommended.read(None)

    @property
    def block_bytes(self) -> int:
        """Size of one expert matrix, the unit of reading (mean over the model)."""
        n_matrix = sum(layer.n_matrix * layer.n_expert for layer in self.layers)
        return max(1, self.info.expert_bytes // max(1, n_matrix))

    @property
    def main_type(self) -> str:
        """The ggml type of most expert matrices ("Q4_K"), "" where they have none."""
        count = Counter(part.split("=")[-1].rstrip("+") for layer in self.layers for part in layer.types.split())
        return count.most_common(1)[0][0] if count else ""

    def close(self) -> None:  # noqa: B027  # a format that holds nothing has nothing to do
        """Give the headers' memory back. `info` stays, so do `layers`, `chat_template` and `recommended` once read."""

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
