"""What an export says, computed in numpy from its dequantized weights: float64, no kernel of ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx_extra import onnx

from edgemoe.converters.onnx.quantize import dequantize

F64 = npt.NDArray[np.float64]
_KINDS = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.UINT8: np.uint8,
    onnx.TensorProto.INT64: np.int64,
}


class Export:
    """model.onnx and its external files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        self.shape: dict[str, Any] = json.loads((folder / "edgemoe.json").read_text())
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.epsilon = next(
            a.f for n in self.model.graph.node if n.op_type == "RMSNormalization" for a in n.attribute
            if a.name == "epsilon"
        )  # fmt: skip

    def tensor(self, name: str) -> npt.NDArray[Any]:
        tensor = self.initializers[name]
        where = {entry.key: entry.value for entry in tensor.external_data}
        kind = np.dtype(_KINDS[tensor.data_type])
        count = int(np.prod(tensor.dims))
        found = np.fromfile(self.folder / where["location"], kind, count, offset=int(where["offset"]))
        return found.reshape(tuple(tensor.dims))

    def matrix(self, name: str) -> F64:
        """[n_row, n_col] of a dense matrix."""
        if f"{name}.weight" in self.initializers:
            return np.asarray(self.tensor(f"{name}.weight").T, np.float64)
        codes, scales = self.tensor(f"{name}.qweight"), self.tensor(f"{name}.scales")
        return dequantize(codes.reshape(len(codes), -1), scales, 8 // (32 // codes.shape[2])).astype(np.float64)

    def experts(self, layer: int) -> list[tuple[F64, F64, F64]]:
        """gate, up, down of each expert."""
        found: dict[int, tuple[F64, F64, F64]] = {}
        for node in self.model.graph.node:
            if node.op_type != "QMoE" or f"layers.{layer}.moe" not in node.output[0]:
                continue
            props = {entry.key: entry.value for entry in node.metadata_props}
            bits = int(props["edgemoe.bits"])
            fused, down = (dequantize(self.tensor(node.input[i]), self.tensor(node.input[i + 1]), bits) for i in (2, 5))
            for place, expert in enumerate(json.loads(props["edgemoe.experts"])):
                gate_up = fused[place].astype(np.float64)
                found[expert] = (gate_up[0::2], gate_up[1::2], down[place].astype(np.float64))
        return [found[i] for i in range(len(found))]

    def logits(self, tokens: list[int]) -> F64:
        """[n_token, n_vocab]."""
        s = self.shape
        names = self.initializers
        head_norm = "model.layers.0.attn.q_norm.weight" in names
        table = self.matrix("model.embed_tokens") if "model.embed_tokens.table" not in names else None
        if table is None and "model.embed_tokens.qweight" not in names:
            table = self.tensor("model.embed_tokens.table").astype(np.float64)
        x = (self.matrix("model.embed_tokens") if table is None else table)[tokens]
        cos, sin = (self.tensor(name).astype(np.float64)[: len(tokens), None] for name in ("cos_cache", "sin_cache"))
        for layer in range(s["n_layer"]):
            p = f"model.layers.{layer}"
            h = self._norm(x, f"{p}.input_layernorm")
            q, k, v = (h @ self.matrix(f"{p}.attn.{part}_proj").T for part in "qkv")
            if head_norm:
                q, k = (self._head_norm(a, f"{p}.attn.{part}_norm") for a, part in ((q, "q"), (k, "k")))
            heads = [a.reshape(len(tokens), -1, s["head_dim"]) for a in (q, k, v)]
            out = _attention(_rotated(heads[0], cos, sin), _rotated(heads[1], cos, sin), heads[2])
            x = x + out @ self.matrix(f"{p}.attn.o_proj").T
            x = x + self._moe(layer, self._norm(x, f"{p}.post_attention_layernorm"))
        head = "lm_head" if any(name.startswith("lm_head.") for name in names) else "model.embed_tokens"
        return np.asarray(self._norm(x, "model.norm") @ self.matrix(head).T)

    def _norm(self, x: F64, name: str) -> F64:
        size = np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return np.asarray(x / size * self.tensor(f"{name}.weight"))

    def _head_norm(self, x: F64, name: str) -> F64:
        n = self.initializers[f"{name}.weight"].dims[0]
        return self._norm(x.reshape(len(x), -1, n), name).reshape(x.shape)

    def _moe(self, layer: int, x: F64) -> F64:
        p = f"model.layers.{layer}.moe"
        logits = x @ self.tensor(f"{p}.router.weight").astype(np.float64)
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        chosen = np.argsort(-probs, -1)[:, : self.shape["n_expert_used"]]
        shares = np.take_along_axis(probs, chosen, -1)
        if any(node.output[0] == f"{p}.share" for node in self.model.graph.node):
            shares /= shares.sum(-1, keepdims=True)
        experts, out = self.experts(layer), np.zeros_like(x)
        for row in range(len(x)):
            for expert, share in zip(chosen[row], shares[row], strict=True):
                gate, up, down = experts[expert]
                z = gate @ x[row]
                out[row] += share * (down @ (z / (1 + np.exp(-z)) * (up @ x[row])))
        return out


def _rotated(x: F64, cos: F64, sin: F64) -> F64:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _attention(q: F64, k: F64, v: F64) -> F64:
    n, n_head, size = q.shape
    out = np.zeros_like(q)
    for head in range(n_head):
        shared = head // (n_head // k.shape[1])
        scores = q[:, head] @ k[:, shared].T / np.sqrt(size)
        scores[np.triu_indices(n, 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, shared]
    return out.reshape(n, -1)
