"""The graph of an export: nodes, and the tensors that they want with the place of each in the external files.

Ordinary operators of ONNX and `com.microsoft`, with the names that onnxruntime-genai expects, so that stock ONNX
Runtime runs it. Everything between two blocks goes through `SkipSimplifiedLayerNormalization`, where our runtime cuts
the model: what one block hands on is the residual stream and the sum of its experts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto, helper

from .geometry import Geometry

OPSET, IR_VERSION = 23, 11  # RMSNormalization begins with 23; runtimes of 2025 read both
ALIGNMENT = 4096
FLOAT, HALF, BYTE, LONG, INT = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64, TensorProto.INT32,
)  # fmt: skip
_SIZES: dict[int, int] = {FLOAT: 4, HALF: 2, BYTE: 1, LONG: 8, INT: 4}

DENSE_FILE = "model.onnx.data"
DENSE_BLOCK = 32


def expert_file(layer: int) -> str:
    """The external data of a block's experts."""
    return f"experts-{layer:05d}.onnx.data"


@dataclass(frozen=True)
class Blob:
    """A tensor in an external file. kind: TensorProto's."""

    name: str
    kind: int
    dims: tuple[int, ...]
    file: str
    offset: int

    @property
    def n_bytes(self) -> int:
        n = _SIZES[self.kind]
        for size in self.dims:
            n *= size
        return n


@dataclass(frozen=True)
class Group:
    """The experts of a block that have the same width, in one QMoE node. experts: their numbers, as stored."""

    layer: int
    bits: int
    experts: tuple[int, ...]

    def name(self, matrix: str, part: str) -> str:
        """matrix: "gate_up" or "down"; part: "qweight" or "scales"."""
        return f"model.layers.{self.layer}.moe.experts.{matrix}_proj.b{self.bits}.{part}"


@dataclass
class Graph:
    """Grows node by node. blobs: by name. sizes: of the external files so far."""

    geometry: Geometry
    expert_block: int
    blobs: dict[str, Blob] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def blob(self, name: str, kind: int, dims: Sequence[int], file: str = DENSE_FILE) -> str:
        at = -(-self.sizes.get(file, 0) // ALIGNMENT) * ALIGNMENT
        self.blobs[name] = Blob(name, kind, tuple(dims), file, at)
        self.sizes[file] = at + self.blobs[name].n_bytes
        return name

    def same_bytes(self, name: str, dims: Sequence[int], other: str) -> str:
        """Another shape of a tensor that is there: both are read from one place."""
        old = self.blobs[other]
        self.blobs[name] = Blob(name, old.kind, tuple(dims), old.file, old.offset)
        return name

    def constant(
        self, name: str, values: Sequence[int] | Sequence[float], kind: int = LONG, *, scalar: bool = False
    ) -> str:
        self.constants.append(helper.make_tensor(name, kind, () if scalar else (len(values),), values))
        return name

    def add(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], *, ms: bool = False, **attributes: Any
    ) -> str:
        name = "/" + outputs[0].replace(".", "/")
        domain = "com.microsoft" if ms else ""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    # ------------------------------------------------------------------ parts

    def matmul(self, x: str, name: str, n_row: int, n_col: int, bits: int, out: str) -> str:
        """x times the transpose of a dense matrix. bits: 4, 8, or 32 for floats."""
        if bits == 32:
            return self.add("MatMul", (x, self.blob(f"{name}.weight", FLOAT, (n_col, n_row))), (out,))
        n_block = n_col // DENSE_BLOCK
        weight = f"{name}.qweight"
        if weight not in self.blobs:
            self.blob(weight, BYTE, (n_row, n_block, DENSE_BLOCK * bits // 8))
            self.blob(f"{name}.scales", FLOAT, (n_row, n_block))
        return self.add(
            "MatMulNBits", (x, weight, f"{name}.scales"), (out,), ms=True,
            K=n_col, N=n_row, bits=bits, block_size=DENSE_BLOCK, accuracy_level=4,
        )  # fmt: skip

    def norm(self, x: str, name: str, size: int, out: str) -> str:
        weight = self.blob(f"{name}.weight", FLOAT, (size,))
        return self.add("RMSNormalization", (x, weight), (out,), axis=-1, epsilon=self.geometry.norm_epsilon)

    def skip(self, residual: str, added: str, name: str, out: str, total: str) -> str:
        """(residual + added), and that normalized."""
        weight = self.blob(f"{name}.weight", FLOAT, (self.geometry.n_embd,))
        return self.add(
            "SkipSimplifiedLayerNormalization", (residual, added, weight), (out, "", "", total), ms=True,
            epsilon=self.geometry.norm_epsilon,
        )  # fmt: skip

    def attention(self, layer: int, x: str, bits: Mapping[str, int]) -> str:
        g, p = self.geometry, f"model.layers.{layer}.attn"
        n_q, n_kv = g.n_head * g.head_dim, g.n_head_kv * g.head_dim
        q = self.matmul(x, f"{p}.q_proj", n_q, g.n_embd, bits["q"], f"{p}.q")
        k = self.matmul(x, f"{p}.k_proj", n_kv, g.n_embd, bits["k"], f"{p}.k")
        v = self.matmul(x, f"{p}.v_proj", n_kv, g.n_embd, bits["v"], f"{p}.v")
        if g.family.head_norm == "whole":
            q, k = self.norm(q, f"{p}.q_norm", n_q, f"{p}.qn"), self.norm(k, f"{p}.k_norm", n_kv, f"{p}.kn")
        elif g.family.head_norm == "head":
            q, k = self._head_norm(q, f"{p}.q_norm", f"{p}.qn"), self._head_norm(k, f"{p}.k_norm", f"{p}.kn")
        past = (f"past_key_values.{layer}.key", f"past_key_values.{layer}.value")
        out = (f"{p}.heads", f"present.{layer}.key", f"present.{layer}.value")
        self.add(
            "GroupQueryAttention", (q, k, v, *past, "seqlens_k", "total_seq_len", "cos_cache", "sin_cache"), out,
            ms=True, num_heads=g.n_head, kv_num_heads=g.n_head_kv, do_rotary=1, rotary_interleaved=0,
        )  # fmt: skip
        return self.matmul(f"{p}.heads", f"{p}.o_proj", g.n_embd, n_q, bits["o"], f"{p}.out")

    def _head_norm(self, x: str, name: str, out: str) -> str:
        """Each head by itself: seen as rows of one head, and back."""
        size = self.geometry.head_dim
        self.add("Reshape", (x, "shape.heads"), (f"{out}.rows",))
        self.norm(f"{out}.rows", name, size, f"{out}.normed")
        self.add("Shape", (x,), (f"{out}.shape",))
        return self.add("Reshape", (f"{out}.normed", f"{out}.shape"), (out,))

    def experts(self, layer: int, x: str, widths: Sequence[int]) -> str:
        """Router and experts. `.x`, `.weights` and `.sum` are what our runtime cuts at."""
        g, p = self.geometry, f"model.layers.{layer}.moe"
        rows = self.add("Reshape", (x, "shape.rows"), (f"{p}.x",))
        router = self.blob(f"{p}.router.weight", FLOAT, (g.n_embd, g.n_expert))
        self.add("MatMul", (rows, router), (f"{p}.logits",))
        self.add("Softmax", (f"{p}.logits",), (f"{p}.probs",), axis=-1)
        self.add("TopK", (f"{p}.probs", "n_used"), (f"{p}.best", f"{p}.ids"), axis=-1)
        chosen = f"{p}.best"
        if g.family.normalized:
            self.add("ReduceSum", (chosen, "axis.last"), (f"{p}.total",), keepdims=1)
            chosen = self.add("Div", (chosen, f"{p}.total"), (f"{p}.share",))
        self.add("Mul", (f"{p}.probs", "zero"), (f"{p}.none",))
        self.add("ScatterElements", (f"{p}.none", f"{p}.ids", chosen), (f"{p}.weights",), axis=1)
        groups = [
            Group(layer, bits, tuple(i for i, width in enumerate(widths) if width == bits))
            for bits in sorted(set(widths))
        ]
        sums = [self._group(group, p, alone=len(groups) == 1) for group in groups]
        self.groups += groups
        self.add("Sum" if len(sums) > 1 else "Identity", sums, (f"{p}.sum",))
        self.add("Shape", (x,), (f"{p}.shape",))
        return self.add("Reshape", (f"{p}.sum", f"{p}.shape"), (f"{p}.out",))

    def _group(self, group: Group, p: str, *, alone: bool) -> str:
        g, n, block, file = self.geometry, len(group.experts), self.expert_block, expert_file(group.layer)
        weights = f"{p}.weights"
        if not alone:
            ids = self.constant(f"{p}.b{group.bits}.ids", group.experts)
            weights = self.add("Gather", (weights, ids), (f"{p}.b{group.bits}.weights",), axis=1)
        tensors = []
        for matrix, n_row, n_col in (("gate_up", 2 * g.n_ff, g.n_embd), ("down", g.n_embd, g.n_ff)):
            codes = self.blob(group.name(matrix, "qweight"), BYTE, (n, n_row, n_col * group.bits // 8), file)
            scales = self.blob(group.name(matrix, "scales"), HALF, (n, n_row, n_col // block), file)
            tensors += [codes, scales, ""]
        out = self.add(
            "QMoE", (f"{p}.x", weights, *tensors, *("",) * 6, weights), (f"{p}.b{group.bits}.out",), ms=True,
            k=min(g.n_expert_used, n), expert_weight_bits=group.bits, block_size=block, activation_type="swiglu",
            swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0, normalize_routing_weights=0, accuracy_level=4,
        )  # fmt: skip
        node = self.nodes[-1]
        for key, value in (("edgemoe.bits", str(group.bits)), ("edgemoe.experts", json.dumps(group.experts))):
            node.metadata_props.add(key=key, value=value)
        return out


DenseBits = Mapping[str, int]
"""Bits of the dense matrices by GGUF tensor name: 4, 8, or 32 for floats."""


def build(geometry: Geometry, widths: Mapping[int, Sequence[int]], dense: DenseBits, expert_block: int) -> Graph:
    """All nodes and tensors of a model."""
    g = Graph(geometry, expert_block)
    m = geometry
    g.constant("zero", (0.0,), FLOAT, scalar=True)
    g.constant("one", (1,))
    g.constant("axis.first", (1,))
    g.constant("axis.last", (-1,))
    g.constant("n_used", (m.n_expert_used,))
    g.constant("shape.rows", (-1, m.n_embd))
    if m.family.head_norm == "head":
        g.constant("shape.heads", (-1, m.head_dim))
    half = m.head_dim // 2
    g.blob("cos_cache", FLOAT, (m.n_ctx, half))
    g.blob("sin_cache", FLOAT, (m.n_ctx, half))
    # How long the sequence is: GroupQueryAttention wants the number of tokens before the last, and of all.
    g.add("ReduceSum", ("attention_mask", "axis.first"), ("mask.sum",), keepdims=0)
    g.add("Sub", ("mask.sum", "one"), ("mask.before",))
    g.add("Cast", ("mask.before",), ("seqlens_k",), to=INT)
    g.add("Shape", ("attention_mask",), ("mask.length",), start=1, end=2)
    g.constant("shape.scalar", ())
    g.add("Reshape", ("mask.length", "shape.scalar"), ("mask.scalar",))
    g.add("Cast", ("mask.scalar",), ("total_seq_len",), to=INT)
    x = _embedding(g, dense)
    residual, normed = x, g.norm(x, "model.layers.0.input_layernorm", m.n_embd, "model.layers.0.input")
    for layer in range(m.n_layer):
        p = f"model.layers.{layer}"
        bits = {part: dense[f"blk.{layer}.attn_{'output' if part == 'o' else part}.weight"] for part in "qkvo"}
        out = g.attention(layer, normed, bits)
        normed = g.skip(residual, out, f"{p}.post_attention_layernorm", f"{p}.moe.input", f"{p}.middle")
        moe = g.experts(layer, normed, widths[layer])
        last = layer + 1 == m.n_layer
        name = "model.norm" if last else f"model.layers.{layer + 1}.input_layernorm"
        residual = f"{p}.residual"
        normed = g.skip(f"{p}.middle", moe, name, "final" if last else f"model.layers.{layer + 1}.input", residual)
    head = "model.embed_tokens" if m.tied else "lm_head"
    g.matmul(normed, head, m.n_vocab, m.n_embd, dense["token_embd.weight" if m.tied else "output.weight"], "logits")
    return g


def _embedding(g: Graph, dense: DenseBits) -> str:
    m, bits, name = g.geometry, dense["token_embd.weight"], "model.embed_tokens"
    if bits == 32:
        # The head wants it transposed: a tied one is stored twice, once as it is gathered.
        table = g.blob(f"{name}.table", FLOAT, (m.n_vocab, m.n_embd))
        return g.add("Gather", (table, "input_ids"), ("model.embed_tokens.out",), axis=0)
    n_block = m.n_embd // DENSE_BLOCK
    weight = g.blob(f"{name}.qweight", BYTE, (m.n_vocab, n_block, DENSE_BLOCK * bits // 8))
    scales = g.blob(f"{name}.scales", FLOAT, (m.n_vocab, n_block))
    table = g.same_bytes(f"{name}.table", (m.n_vocab, m.n_embd * bits // 8), weight)
    return g.add(
        "GatherBlockQuantized", (table, "input_ids", scales), ("model.embed_tokens.out",), ms=True,
        bits=bits, block_size=DENSE_BLOCK, gather_axis=0, quantize_axis=1,
    )  # fmt: skip


def to_model(g: Graph, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The proto, its tensors named in their files."""
    m = g.geometry
    cache = ("batch_size", m.n_head_kv, "past_sequence_length", m.head_dim)
    total = ("batch_size", m.n_head_kv, "total_sequence_length", m.head_dim)
    inputs = [
        helper.make_tensor_value_info("input_ids", LONG, ("batch_size", "sequence_length")),
        helper.make_tensor_value_info("attention_mask", LONG, ("batch_size", "total_sequence_length")),
    ]
    outputs = [helper.make_tensor_value_info("logits", FLOAT, ("batch_size", "sequence_length", m.n_vocab))]
    for layer in range(m.n_layer):
        for part in ("key", "value"):
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{layer}.{part}", FLOAT, cache))
            outputs.append(helper.make_tensor_value_info(f"present.{layer}.{part}", FLOAT, total))
    graph = helper.make_graph(g.nodes, "edgemoe", inputs, outputs, [*g.constants, *map(external, g.blobs.values())])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgemoe")
    helper.set_model_props(model, dict(metadata))
    return model


def external(blob: Blob) -> onnx.TensorProto:
    """An initializer that lies in a file."""
    tensor = TensorProto(name=blob.name, data_type=blob.kind, dims=blob.dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", blob.file), ("offset", blob.offset), ("length", blob.n_bytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
