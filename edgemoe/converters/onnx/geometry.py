"""What an exported graph must know of a model, from its metadata; what the graph does not compute is refused.

Sources come with GGUF's names and keys, whatever they are read from (source.py), so there is one place for all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import FormatError, UnsupportedError
from ..gguf_header import decode, decode_strings
from ..source import DenseTensor, PickedRows, Rows, Source


@dataclass(frozen=True)
class Family:
    """How an architecture differs from the others.

    normalized: the weights of the chosen experts sum to one. head_norm: queries and keys are normalized, "head" each
    head, "whole" all of them together. permuted: the GGUF has rows of queries and keys as llama.cpp rotates them.
    genai: what onnxruntime-genai calls a model of this form.
    """

    normalized: bool
    head_norm: str | None
    permuted: bool
    genai: str


FAMILIES = {
    "llama": Family(normalized=True, head_norm=None, permuted=True, genai="llama"),
    "qwen3moe": Family(normalized=True, head_norm="head", permuted=False, genai="qwen3"),
    "olmoe": Family(normalized=False, head_norm="whole", permuted=False, genai="llama"),
}
"""By GGUF's name. Mixtral and SmolMoE are `llama`."""


@dataclass(frozen=True)
class Geometry:
    """Shapes and constants. n_ctx: positions that the export can rotate."""

    family: Family
    architecture: str
    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_expert: int
    n_expert_used: int
    n_vocab: int
    n_ctx: int
    rope_base: float
    norm_epsilon: float
    tied: bool


_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate_inp")
_NORMS = ("attn_q_norm", "attn_k_norm")
# Settings of other variants, which would need other graphs: value 0, false or none is harmless.
_REFUSED = (
    "rope.scaling.type", "attention.clamp_kqv", "attention.sliding_window", "expert_weights_scale", "logit_scale",
    "attention.scale", "embedding_scale", "residual_scale", "leading_dense_block_count", "expert_group_count",
    "expert_shared_count", "attention.kv_lora_rank",
)  # fmt: skip


def geometry_of(source: Source, *, n_ctx: int | None = None) -> Geometry:
    """Raises UnsupportedError for what the export does not know, FormatError for metadata that contradicts itself."""
    family = FAMILIES.get(source.architecture)
    if family is None:
        raise UnsupportedError(
            f"there is no ONNX export of the architecture `{source.architecture}`",
            hint=f"known are {', '.join(FAMILIES)} (Mixtral is llama); GGUF takes all",
        )
    meta = _Meta(source)
    for key in _REFUSED:
        value = meta.get(key)
        if value not in (None, 0, 0.0, False, "none", "") and not (key == "expert_weights_scale" and value == 1.0):
            raise UnsupportedError(f"the ONNX export does not know `{key}` = {value}", hint="convert to GGUF instead")
    n_embd, n_head = meta.number("embedding_length"), meta.number("attention.head_count")
    head_dim = meta.number("attention.key_length", n_embd // max(1, n_head))
    if meta.number("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedError("the ONNX export does not know heads that are rotated in part")
    n_trained = meta.number("context_length", 4096)
    stack = next(iter(source.experts.values()))
    up = next((rows for (_, _, role), rows in source.experts.items() if role == "up"), None)
    if up is None:
        raise UnsupportedError("the ONNX export does not know experts whose gate and up are one matrix")
    tensors = {tensor.name: tensor for tensor in source.dense}
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError("the model lacks `token_embd.weight`")
    found = Geometry(
        family,
        source.architecture,
        decode(source.values.get("general.name")) or source.path.stem,
        meta.number("block_count"),
        n_embd,
        n_head,
        meta.number("attention.head_count_kv", n_head),
        head_dim,
        up[0].n_row,
        len(stack),
        meta.number("expert_used_count"),
        embedding.rows.n_row,
        min(n_trained, n_ctx or MAX_CTX),
        float(meta.get("rope.freq_base") or 10000.0),
        float(meta.get("attention.layer_norm_rms_epsilon") or 1e-5),
        "output.weight" not in tensors,
    )
    _check(found, source, tensors)
    return found


MAX_CTX = 32768
"""Positions of an export, unless fewer or more are asked for: the tables of angles take 512 bytes a position."""


class _Meta:
    def __init__(self, source: Source) -> None:
        self._values, self._prefix = source.values, source.architecture

    def get(self, key: str) -> Any:
        return decode(self._values.get(f"{self._prefix}.{key}"))

    def number(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise FormatError(f"`{self._prefix}.{key}` is {value!r}, a whole number is due")
        return value


def _check(found: Geometry, source: Source, tensors: Mapping[str, DenseTensor]) -> None:
    norms = _NORMS if found.family.head_norm else ()
    wanted = {f"blk.{i}.{name}.weight" for i in range(found.n_layer) for name in (*_LAYER, *norms)}
    wanted |= {"token_embd.weight", "output_norm.weight"} | (set() if found.tied else {"output.weight"})
    for name in sorted(wanted - tensors.keys()):
        raise FormatError(f"the model lacks `{name}`")
    for name in sorted(tensors.keys() - wanted):
        raise UnsupportedError(
            f"the ONNX export does not know the tensor `{name}` of `{source.architecture}`",
            hint="convert to GGUF instead",
        )
    layers = {key[0] for key in source.experts}
    if layers != set(range(found.n_layer)) or any(key[1] != "exps" for key in source.experts):
        raise UnsupportedError(
            f"{len(layers)} of {found.n_layer} blocks have experts; the ONNX export wants them in all",
            hint="convert to GGUF instead",
        )
    q, kv = found.n_head * found.head_dim, found.n_head_kv * found.head_dim
    shapes = {"attn_q": (q, found.n_embd), "attn_k": (kv, found.n_embd), "attn_v": (kv, found.n_embd),
              "attn_output": (found.n_embd, q), "ffn_gate_inp": (found.n_expert, found.n_embd)}  # fmt: skip
    for i in range(found.n_layer):
        for part, shape in shapes.items():
            rows = tensors[f"blk.{i}.{part}.weight"].rows
            if (rows.n_row, rows.n_col) != shape:
                raise FormatError(
                    f"`blk.{i}.{part}.weight` is {rows.n_row} x {rows.n_col}, {shape[0]} x {shape[1]} are due"
                )
        for role in ("gate", "up", "down"):
            shape = (found.n_embd, found.n_ff) if role == "down" else (found.n_ff, found.n_embd)
            stack = source.experts[i, "exps", role]
            if len(stack) != found.n_expert or any((rows.n_row, rows.n_col) != shape for rows in stack):
                raise UnsupportedError(f"the experts of block {i} are not like the others'")
    if found.n_expert_used > found.n_expert or found.n_head % found.n_head_kv:
        raise FormatError(
            f"{found.n_expert_used} of {found.n_expert} experts, {found.n_head} heads on {found.n_head_kv}"
        )


_ROTATED = re.compile(r"blk\.\d+\.attn_([qk])\.weight")


def straight(tensor: DenseTensor, geometry: Geometry) -> Rows:
    """A tensor's rows as checkpoints have them: the halves of a head that rotate against each other, one after the
    other, where llama.cpp wants neighbours."""
    match = _ROTATED.fullmatch(tensor.name)
    if match is None or not geometry.family.permuted:
        return tensor.rows
    n_head = geometry.n_head if match[1] == "q" else geometry.n_head_kv
    order = np.arange(tensor.rows.n_row).reshape(n_head, geometry.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    return PickedRows(tensor.rows, order)


def tokens_of(source: Source) -> list[str]:
    """The vocabulary."""
    return decode_strings(source.values.get("tokenizer.ggml.tokens"))
