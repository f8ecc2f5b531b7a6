"""What each architecture's tiny model contains: keys and tensors, as llama.cpp's src/models wants them.

An architecture is a row of `TABLE`: a GGUF name, a geometry, the features it has beyond plain
attention and experts, and constant keys. `keys` and `tensors` turn a row into file contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Value = bool | int | float | str | list[int] | list[bool] | list[str]
Keys = Mapping[str, Value]

HEAD = 64  # attention head size wherever an architecture has one
CONTEXT = 4096
LITE_LAYERS = (26, 27)  # llama.cpp takes a deepseek2 of these depths to have no q_lora

# Multi-head latent attention: ranks and head parts.
Q_LORA, KV_LORA, NOPE, ROPE, V_HEAD = 64, 128, 32, 32, 32
CONV = 3  # lfm2moe's convolution kernel


@dataclass(frozen=True)
class Geometry:
    """Sizes of a tiny model; every field can be overridden by a keyword of `tinymoe.write`."""

    n_layer: int = 3
    n_expert: int = 8
    n_used: int = 2
    hidden: int = 256
    ff: int = 256  # of one expert; dense layers are twice as wide
    n_dense: int = 0  # leading layers without experts
    n_shared: int = 0  # shared experts, held as one of n_shared * ff
    n_group: int = 0
    n_group_used: int = 0
    gqa: int = 2  # query heads to one of keys and values

    @property
    def n_head(self) -> int:
        """Query heads."""
        return self.hidden // HEAD

    @property
    def n_kv(self) -> int:
        """Key and value heads."""
        return max(1, self.n_head // self.gqa)


@dataclass(frozen=True)
class Arch:
    """One architecture: `has` names what it adds, each explained where `tensors` or `keys` asks for it."""

    gguf: str
    geometry: Geometry
    has: frozenset[str] = frozenset()
    constants: Keys = field(default_factory=dict)


class Tensor(NamedTuple):
    """A tensor to draw; `shape` is in numpy order, `role` says how it is drawn and who chooses its type."""

    name: str
    shape: tuple[int, ...]
    role: str  # embed, output, matrix, norm, bias, conv, router, router_scale, gate_up (gate, up or both) or down


def _arch(gguf: str, has: str = "", constants: Keys | None = None, **geometry: int) -> Arch:
    return Arch(gguf, Geometry(**geometry), frozenset(has.split()), constants or {})


_V2: Keys = {"expert_gating_func": 1, "expert_weights_norm": False, "expert_weights_scale": 1.0}
_V3: Keys = {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5}
_YARN: Keys = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 32.0,
    "rope.scaling.original_context_length": CONTEXT,
}
# Real ones (12, 0.22, 1/64, 6) would let a random embedding drown the experts.
_GRANITE: Keys = {"embedding_scale": 0.5, "residual_scale": 0.7, "attention.scale": 0.1, "logit_scale": 2.0}
_GEMMA4: Keys = {
    "attention.key_length_swa": HEAD,
    "attention.value_length_swa": HEAD,
    "embedding_length_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "rope.freq_base_swa": 10000.0,
}

TABLE: dict[str, Arch] = {
    "llama": _arch("llama"),
    "qwen3moe": _arch("qwen3moe", "key_length ff_exp qk_norm", n_expert=16, n_used=4),
    "qwen2moe": _arch("qwen2moe", "ff_exp qkv_bias shared_gate", n_expert=12, n_used=4, n_shared=2),
    "olmoe": _arch("olmoe", "qk_norm_whole", n_expert=12, n_used=4, gqa=1),
    "deepseek2": _arch("deepseek2", "mla ff_exp", _V2, n_expert=16, n_used=4, n_dense=1, n_shared=2),
    "deepseek2-grouped": _arch(
        "deepseek2", "mla ff_exp select_bias", _V3,
        n_expert=16, n_used=4, n_dense=1, n_shared=1, n_group=4, n_group_used=2,
    ),
    "deepseek2-fused": _arch("deepseek2", "mla ff_exp fused", _V2, n_expert=16, n_used=4, n_dense=1, n_shared=2),
    "gpt-oss": _arch(
        "gpt-oss", "key_length ff_exp qkv_bias o_bias sinks post_norm_only router_bias expert_bias window", _YARN,
        n_used=4,
    ),
    "granitemoe": _arch("granitemoe", "tied", _GRANITE, n_expert=12, n_used=3),
    "lfm2moe": _arch(
        "lfm2moe", "ff_exp tied conv qk_norm select_bias",
        {"expert_gating_func": 2, "shortconv.l_cache": CONV}, n_expert=16, n_used=4, n_dense=1,
    ),
    "gemma4-fused": _arch(
        "gemma4", "key_length ff_exp tied qk_norm fused gemma window window_list", _GEMMA4, n_expert=12, n_used=4,
    ),
    "llama-dense": _arch("llama", n_expert=0, n_used=0),
}  # fmt: skip


def keys(arch: Arch, geo: Geometry) -> dict[str, Value]:
    """The architecture's keys, without its prefix."""
    layers = range(geo.n_layer)
    out: dict[str, Value] = {
        "block_count": geo.n_layer,
        "context_length": CONTEXT,
        "embedding_length": geo.hidden,
        "feed_forward_length": geo.ff * (2 if "ff_exp" in arch.has else 1),
        "attention.head_count": geo.n_head,
        "attention.head_count_kv": geo.n_kv,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": HEAD,
    }
    if geo.n_expert:
        out |= {"expert_count": geo.n_expert, "expert_used_count": geo.n_used}
    if "ff_exp" in arch.has:  # otherwise feed_forward_length is an expert's
        out["expert_feed_forward_length"] = geo.ff
    if geo.n_dense:
        out["leading_dense_block_count"] = geo.n_dense
    if geo.n_group:
        out |= {"expert_group_count": geo.n_group, "expert_group_used_count": geo.n_group_used}
    if "shared_gate" in arch.has:
        out["expert_shared_feed_forward_length"] = geo.n_shared * geo.ff
    elif geo.n_shared:
        out["expert_shared_count"] = geo.n_shared
    if "key_length" in arch.has:
        out |= {"attention.key_length": HEAD, "attention.value_length": HEAD}
    if "window" in arch.has:  # short, so that tests leave it
        out["attention.sliding_window"] = 32
    if "window_list" in arch.has:  # gpt-oss's pattern is fixed in llama.cpp
        out["attention.sliding_window_pattern"] = [il % 2 == 0 for il in layers]
    if "conv" in arch.has:
        out["attention.head_count_kv"] = [0 if _is_conv(arch, il) else geo.n_kv for il in layers]
    if "mla" in arch.has:
        out |= {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": KV_LORA,
            "attention.key_length": KV_LORA + ROPE,
            "attention.value_length": KV_LORA,
            "attention.key_length_mla": NOPE + ROPE,
            "attention.value_length_mla": V_HEAD,
            "rope.dimension_count": ROPE,
        }
        if geo.n_layer not in LITE_LAYERS:
            out["attention.q_lora_rank"] = Q_LORA
    return {**out, **arch.constants}


def tensors(arch: Arch, geo: Geometry, n_vocab: int) -> Iterator[Tensor]:
    """Every tensor of the model, layer by layer."""
    d = geo.hidden
    yield Tensor("token_embd.weight", (n_vocab, d), "output" if "tied" in arch.has else "embed")
    if "tied" not in arch.has:
        yield Tensor("output.weight", (n_vocab, d), "output")
    yield Tensor("token_embd_norm.weight" if "conv" in arch.has else "output_norm.weight", (d,), "norm")
    if "gemma" in arch.has:
        yield Tensor("rope_freqs.weight", (HEAD // 2,), "norm")
    for il in range(geo.n_layer):
        layer = [*_attention(arch, geo, il)]
        layer += _experts(arch, geo) if geo.n_expert and il >= geo.n_dense else _dense(geo)
        for name, shape, role in layer:
            yield Tensor(f"blk.{il}.{name}", shape, role)


def _is_conv(arch: Arch, il: int) -> bool:
    return "conv" in arch.has and il % 2 == 0


def _attention(arch: Arch, geo: Geometry, il: int) -> Iterator[Tensor]:
    d, head = geo.hidden, geo.n_head
    yield Tensor("attn_norm.weight", (d,), "norm")
    # gpt-oss norms the experts' input by a tensor of this name; gemma has it and ffn_norm.
    if "post_norm_only" in arch.has or "gemma" in arch.has:
        yield Tensor("post_attention_norm.weight", (d,), "norm")
    if "post_norm_only" not in arch.has:
        yield Tensor("ffn_norm.weight", (d,), "norm")

    if _is_conv(arch, il):
        yield Tensor("shortconv.conv.weight", (d, CONV), "conv")
        yield Tensor("shortconv.in_proj.weight", (3 * d, d), "matrix")
        yield Tensor("shortconv.out_proj.weight", (d, d), "matrix")
        return
    if "mla" in arch.has:
        if geo.n_layer in LITE_LAYERS:
            yield Tensor("attn_q.weight", (head * (NOPE + ROPE), d), "matrix")
        else:
            yield Tensor("attn_q_a.weight", (Q_LORA, d), "matrix")
            yield Tensor("attn_q_a_norm.weight", (Q_LORA,), "norm")
            yield Tensor("attn_q_b.weight", (head * (NOPE + ROPE), Q_LORA), "matrix")
        yield Tensor("attn_kv_a_mqa.weight", (KV_LORA + ROPE, d), "matrix")
        yield Tensor("attn_kv_a_norm.weight", (KV_LORA,), "norm")
        yield Tensor("attn_k_b.weight", (head, KV_LORA, NOPE), "matrix")
        yield Tensor("attn_v_b.weight", (head, V_HEAD, KV_LORA), "matrix")
        yield Tensor("attn_output.weight", (d, head * V_HEAD), "matrix")
        return

    widths = {"q": head * HEAD, "k": geo.n_kv * HEAD, "v": geo.n_kv * HEAD}
    for part, rows in widths.items():
        yield Tensor(f"attn_{part}.weight", (rows, d), "matrix")
        if "qkv_bias" in arch.has:
            yield Tensor(f"attn_{part}.bias", (rows,), "bias")
        if part != "v" and "qk_norm_whole" in arch.has:
            yield Tensor(f"attn_{part}_norm.weight", (rows,), "norm")
        if part != "v" and "qk_norm" in arch.has:
            yield Tensor(f"attn_{part}_norm.weight", (HEAD,), "norm")
    yield Tensor("attn_output.weight", (d, head * HEAD), "matrix")
    if "o_bias" in arch.has:
        yield Tensor("attn_output.bias", (d,), "bias")
    if "sinks" in arch.has:
        yield Tensor("attn_sinks.weight", (head,), "bias")


def _dense(geo: Geometry, suffix: str = "", width: int | None = None) -> Iterator[Tensor]:
    d = geo.hidden
    # A model without experts has no ff_exp, so its feed_forward_length is ff.
    ff = width or geo.ff * (2 if geo.n_expert else 1)
    yield Tensor(f"ffn_gate{suffix}.weight", (ff, d), "matrix")
    yield Tensor(f"ffn_up{suffix}.weight", (ff, d), "matrix")
    yield Tensor(f"ffn_down{suffix}.weight", (d, ff), "matrix")


def _experts(arch: Arch, geo: Geometry) -> Iterator[Tensor]:
    d, ff, n = geo.hidden, geo.ff, geo.n_expert
    yield Tensor("ffn_gate_inp.weight", (n, d), "router")
    if "router_bias" in arch.has:
        yield Tensor("ffn_gate_inp.bias", (n,), "bias")
    if "select_bias" in arch.has:
        yield Tensor("exp_probs_b.bias", (n,), "bias")

    if "fused" in arch.has:
        yield Tensor("ffn_gate_up_exps.weight", (n, 2 * ff, d), "gate_up")
    else:
        yield Tensor("ffn_gate_exps.weight", (n, ff, d), "gate_up")
        yield Tensor("ffn_up_exps.weight", (n, ff, d), "gate_up")
    yield Tensor("ffn_down_exps.weight", (n, d, ff), "down")
    if "expert_bias" in arch.has:
        yield Tensor("ffn_gate_exps.bias", (n, ff), "bias")
        yield Tensor("ffn_up_exps.bias", (n, ff), "bias")
        yield Tensor("ffn_down_exps.bias", (n, d), "bias")

    if "shared_gate" in arch.has:
        yield Tensor("ffn_gate_inp_shexp.weight", (d,), "bias")
    if geo.n_shared:
        yield from _dense(geo, "_shexp", geo.n_shared * ff)
    if "gemma" in arch.has:  # its dense FFN runs beside the experts, each between norms of its own
        yield from _dense(geo)
        for name in ("post_ffw_norm", "post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2"):
            yield Tensor(f"{name}.weight", (d,), "norm")
        yield Tensor("ffn_gate_inp.scale", (d,), "router_scale")
        yield Tensor("ffn_down_exps.scale", (n,), "norm")
