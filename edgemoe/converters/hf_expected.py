"""The tensors that config.json says a checkpoint has, under their GGUF names: what lacks one is another model.

A lost shard without an index leaves no other trace, and llama.cpp makes do: without an output matrix it takes the
embedding's. Routed experts are not here: each is checked where they are collected.
"""

from __future__ import annotations

from .hf_config import Config, architecture_of, head_dim, n_expert, n_layer, whole

Shape = tuple[int, ...]
_ANY = 0  # a dimension that config.json does not settle: rows of the vocabulary may be padded


def expected(config: Config) -> dict[str, Shape]:
    """Name -> ggml's shape of every dense tensor; 0 stands for any size."""
    hidden = whole(config, "hidden_size")
    out: dict[str, Shape] = {"token_embd.weight": (hidden, _ANY), "output_norm.weight": (hidden,)}
    if not is_tied(config):
        out["output.weight"] = (hidden, _ANY)
    name, row = architecture_of(config)
    for layer in range(n_layer(config)):
        parts = {"attn_norm.weight": (hidden,), **_router(name, config, layer)}
        norm = "post_attention_norm" if row.gguf == "gpt-oss" else "ffn_norm"
        parts[f"{norm}.weight"] = (hidden,)
        parts |= _latent(config) if row.gguf == "deepseek2" else _attention(row.gguf, config)
        out |= {f"blk.{layer}.{part}": shape for part, shape in parts.items()}
    return out


def is_tied(config: Config) -> bool:
    """Whether the embedding is the output matrix too. None of these architectures ties unless config.json says so."""
    return bool(config.get("tie_word_embeddings"))


def _attention(kind: str, config: Config) -> dict[str, Shape]:
    hidden, head = whole(config, "hidden_size"), head_dim(config)
    n_head = whole(config, "num_attention_heads")
    n_q, n_kv = n_head * head, whole(config, "num_key_value_heads", n_head) * head
    out: dict[str, Shape] = {
        "attn_q.weight": (hidden, n_q),
        "attn_k.weight": (hidden, n_kv),
        "attn_v.weight": (hidden, n_kv),
        "attn_output.weight": (n_q, hidden),
    }
    biased = config.get("qkv_bias", True) if kind == "qwen2moe" else config.get("attention_bias", kind == "gpt-oss")
    if biased:
        out |= {"attn_q.bias": (n_q,), "attn_k.bias": (n_kv,), "attn_v.bias": (n_kv,)}
    if kind == "gpt-oss":
        out |= {"attn_output.bias": (hidden,)} if biased else {}
        out["attn_sinks.weight"] = (n_head,)
    elif kind == "qwen3moe":
        out |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    elif kind == "olmoe":
        out |= {"attn_q_norm.weight": (n_q,), "attn_k_norm.weight": (n_kv,)}
    return out


def _latent(config: Config) -> dict[str, Shape]:
    """DeepSeek's attention: keys and values of all heads come from one low rank."""
    hidden, n_head, rank = (whole(config, key) for key in ("hidden_size", "num_attention_heads", "kv_lora_rank"))
    plain, rope, value = (whole(config, key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    out: dict[str, Shape] = {
        "attn_kv_a_mqa.weight": (hidden, rank + rope),
        "attn_kv_a_norm.weight": (rank,),
        "attn_k_b.weight": (plain, rank, n_head),
        "attn_v_b.weight": (rank, value, n_head),
        "attn_output.weight": (n_head * value, hidden),
    }
    if config.get("q_lora_rank") is None:
        return {**out, "attn_q.weight": (hidden, n_head * (plain + rope))}
    low = whole(config, "q_lora_rank")
    return {
        **out,
        "attn_q_a.weight": (hidden, low),
        "attn_q_a_norm.weight": (low,),
        "attn_q_b.weight": (low, n_head * (plain + rope)),
    }


def _router(name: str, config: Config, layer: int) -> dict[str, Shape]:
    """What chooses experts, what is beside them, and the feed-forward part of a layer without any."""
    hidden = whole(config, "hidden_size")
    if layer < whole(config, "first_k_dense_replace", 0):
        return _mlp(hidden, whole(config, "intermediate_size"), "")
    n = n_expert(config)
    out: dict[str, Shape] = {"ffn_gate_inp.weight": (hidden, n)}
    if name == "GptOssForCausalLM":
        wide = whole(config, "intermediate_size")
        out |= {"ffn_gate_inp.bias": (n,), "ffn_gate_exps.bias": (wide, n), "ffn_up_exps.bias": (wide, n)}
        out["ffn_down_exps.bias"] = (hidden, n)
    elif name == "Qwen2MoeForCausalLM":
        out |= _mlp(hidden, whole(config, "shared_expert_intermediate_size"), "_shexp")
        out["ffn_gate_inp_shexp.weight"] = (hidden,)
    elif name == "GraniteMoeSharedForCausalLM" and config.get("shared_intermediate_size"):
        out |= _mlp(hidden, whole(config, "shared_intermediate_size"), "_shexp")
    elif name.startswith("Deepseek"):
        if config.get("n_shared_experts"):
            wide = whole(config, "moe_intermediate_size") * whole(config, "n_shared_experts")
            out |= _mlp(hidden, wide, "_shexp")
        if config.get("topk_method", "noaux_tc" if name.startswith("DeepseekV3") else "") == "noaux_tc":
            out["exp_probs_b.bias"] = (n,)
    return out


def _mlp(hidden: int, wide: int, suffix: str) -> dict[str, Shape]:
    return {
        f"ffn_gate{suffix}.weight": (hidden, wide),
        f"ffn_up{suffix}.weight": (hidden, wide),
        f"ffn_down{suffix}.weight": (wide, hidden),
    }
